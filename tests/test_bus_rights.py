"""Who may do what on the bus: the real broker with its authorizer on, TLS, SCRAM and mutual TLS.

All of it is in one file, so that one broker, and one run of the commands that grant rights, serve it: half of its time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import orjson
import pytest
import pytest_asyncio
from aiokafka.admin import NewTopic

from callyard import clients, doctor_checks
from callyard.doctor import Level
from callyard.main import main
from callyard.parts import asterisk, freeswitch, sipp
from callyard.parts.cluster import agent_environment, hook_environment
from callyard.processes import Child, free_port, worker
from callyard.rights import ROLES, agent_group, commands, rights
from callyard.settings import KafkaSettings, SecurityProtocol
from tests.support import allowed, secured
from tests.support import events as records
from tests.support import kafka as on_kafka
from tests.support.agent import agent, dial, has, instruct, logged, said
from tests.support.asterisk import conference_number
from tests.support.certificates import Authority
from tests.support.hook import events, hook, registrations
from tests.support.probes import metric
from tests.support.secured import GATEWAY, SETTINGS, Secured, environment
from tests.support.streams import instructions
from tests.support.wait import until

pytestmark = pytest.mark.kafka
TOPICS = {
    "registrations": "callyard.registrations", "calls": "callyard.calls", "timers": "callyard.timers",
    "dials": "callyard.dials", "journal": "callyard.journal", "rejected": "callyard.rejected",
    "changelog": "callyard-stream-desks-changelog",
}  # fmt: skip
NEIGHBOURS = ("callyard-two.registrations", "callyard2.calls", "callyard", "other")
GROUPS = ("callyard-stream", "callyard-agent-gw-1", "callyard-agent-gw-2", "callyard-agent-gw-10", "other")
# Written out by hand, not taken from callyard.rights: a right too many must fail here.
WRITES = {
    "node": {"registrations", "rejected"},
    "gateway": {"calls", "rejected"},
    "stream": {"timers", "changelog", "dials", "journal", "rejected"},
    "auditor": set(),
    "scaler": set(),
}
READS = {
    "node": set(),
    "gateway": {"dials"},
    "stream": {"registrations", "calls", "timers", "changelog"},
    "auditor": set(TOPICS),
    "scaler": set(),
}
SEES = {role: set(TOPICS) for role in ("node", "gateway", "stream", "auditor")}
SEES["scaler"] = {"registrations", "calls", "timers"}
READS_SETTINGS = {**SEES, "scaler": set()}
JOINS = {"node": set(), "gateway": {"callyard-agent-gw-1"}, "stream": {"callyard-stream"}, "auditor": set(),
         "scaler": set()}  # fmt: skip
SEES_GROUPS = {**JOINS, "auditor": set(GROUPS) - {"other"}, "scaler": {"callyard-stream"}}


def user(role: str) -> str:
    return f"callyard-{role}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bus(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Secured]:
    """The broker; each role's user has the rights that Callyard prints, a stranger has none."""
    async with secured.running(tmp_path_factory.mktemp("secured"), [*map(user, ROLES), "stranger"]) as running:
        granting = (
            running.grant(role, f"User:{user(role)}", gateway=GATEWAY if role == "gateway" else None) for role in ROLES
        )
        await asyncio.gather(*granting)
        yield running


@pytest_asyncio.fixture
async def made(bus: Secured) -> AsyncIterator[Secured]:
    """With the topics, and nothing in them."""
    await on_kafka.create_topics(bus.admin)
    yield bus
    await on_kafka.delete_topics(bus.admin)


# --- the broker's own word --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", list(ROLES))
async def test_a_role_may_do_what_it_must_and_nothing_else(made: Secured, role: str) -> None:
    names = [*TOPICS.values(), *NEIGHBOURS]
    async with clients.admin(made.admin) as admin:
        await admin.create_topics([NewTopic(name, 1, 1) for name in NEIGHBOURS])
    try:
        await until(lambda: allowed.with_settings(made.admin, NEIGHBOURS), what="the neighbours' topics are there")
        settings = made.mutual(user(role)) if role == "scaler" else made.scram(user(role))
        assert await allowed.written(settings, names) == {TOPICS[name] for name in WRITES[role]}
        assert await allowed.read(settings, names) == {TOPICS[name] for name in READS[role]}
        assert await allowed.seen(settings, names) == {TOPICS[name] for name in SEES[role]}
        assert await allowed.with_settings(settings, names) == {TOPICS[name] for name in READS_SETTINGS[role]}
        assert await allowed.joined(settings, GROUPS, TOPICS["dials"]) == JOINS[role]
        assert await allowed.offsets_seen(settings, GROUPS) == SEES_GROUPS[role]
        assert await allowed.administered(settings, TOPICS["registrations"], "callyard.new") == set()
    finally:
        async with clients.admin(made.admin) as admin:
            await admin.delete_topics(list(NEIGHBOURS))


async def test_an_administrator_may_do_what_is_refused_to_all_roles(made: Secured) -> None:
    topic, new = TOPICS["registrations"], "callyard.new"
    assert await allowed.administered(made.admin, topic, new) == {"create", "alter", "erase", "delete"}
    async with clients.admin(made.admin) as admin:
        await admin.delete_topics([new])


# --- the workers, each with its role ----------------------------------------------------------------------------------


async def test_all_workers_do_their_work_with_the_rights_of_their_roles(
    made: Secured, gateway: asterisk.Gateway, tmp_path: Path
) -> None:
    number = conference_number()
    of = {role: environment(made.scram(user(role)), tmp_path) for role in ("node", "stream")}
    of |= {role: environment(made.mutual(user(role)), tmp_path) for role in ("gateway", "auditor")}
    async with contextlib.AsyncExitStack() as stack:
        control = await stack.enter_async_context(freeswitch.FreeSwitch())
        sip = await stack.enter_async_context(sipp.node(tmp_path / "node"))
        children = [
            worker("stream", environment=of["stream"], log=tmp_path / "stream.log"),
            worker("hook", environment={**of["node"], **hook_environment("node-1", control, sip)},
                   log=tmp_path / "hook.log"),
            worker("agent", environment={**of["gateway"], **agent_environment(gateway.ami)},
                   log=tmp_path / "agent.log"),
        ]  # fmt: skip
        for child in children:
            child.start()
            stack.push_async_callback(child.stop)
        await asyncio.gather(*(child.ready(60) for child in children))
        call = sipp.Call("+49301234567", f"{number}#")
        entrance = (gateway.sip_host, gateway.sip_port)
        caller = await stack.enter_async_context(sipp.calling(tmp_path / "caller", entrance, [call]))
        await caller.saw("answered", 1, timeout=20)
        await said(made.admin, number, has("caller-parked"))
        control.open(number)
        await until(lambda: caller.talking() and sip.events("answered"), 20, what="the caller is put through")
        assert all(str(made.scram(user("node")).sasl_password) not in cmdline(child) for child in children)
        assert not [child.name for child in children if secrets(child.log)]
        checks = [
            *(worker("topics", "--check", environment=of[role], log=tmp_path / f"{role}.out") for role in of),
            worker("audit", "verify", environment=of["auditor"], log=tmp_path / "verify.out"),
            worker("table", "--json", environment=of["auditor"], log=tmp_path / "table.out"),
        ]
        for check in checks:
            check.start()
        assert [await check.wait() for check in checks] == [0] * len(checks), "".join(check.tail() for check in checks)
    table = orjson.loads((tmp_path / "table.out").read_text().strip().splitlines()[-1])
    assert [found["conference"] for found in table["registrations"]] == [number]
    assert [(found["conference"], found["state"]) for found in table["callers"]] == [(number, "connected")]


def cmdline(child: Child) -> str:
    return Path(f"/proc/{child.pid}/cmdline").read_text()


def secrets(log: Path | None) -> bool:
    """Whether any password or key stands in a log."""
    assert log is not None
    content = log.read_text()
    passwords = [secured.PASSWORD.format(user(role)) for role in ROLES]
    return any(secret in content for secret in [*passwords, "wrong-horse", "PRIVATE KEY"])


# --- what is told -----------------------------------------------------------------------------------------------------


def foreign(bus: Secured) -> Authority:
    return Authority(bus.directory / "foreign", "another authority")


def certified(bus: Secured, authority: Authority, *, expired: bool = False) -> KafkaSettings:
    files = authority.issue(user("node"), expired=expired, file=f"again-{expired}")
    return bus.mutual(user("node"), ssl_certfile=files.certificate, ssl_keyfile=files.key)


REFUSED_USER = "can't be used: it refuses user {} or the password: check CALLYARD_KAFKA_SASL_USERNAME"
WORDS: dict[str, tuple[Callable[[Secured], KafkaSettings], str]] = {
    "wrong password": (lambda bus: bus.scram(user("node"), sasl_password="wrong-horse"),
                       REFUSED_USER.format("callyard-node")),
    "unknown user": (lambda bus: bus.scram("nobody"), REFUSED_USER.format("nobody")),
    "other mechanism": (lambda bus: bus.scram(user("node"), sasl_mechanism="PLAIN"),
                        "it doesn't take PLAIN: check CALLYARD_KAFKA_SASL_MECHANISM"),
    "CA not trusted": (lambda bus: bus.scram(user("node"), ssl_cafile=foreign(bus).file),
                       "signed by nobody that is trusted (unable to get local issuer certificate): name its CA's"
                       " certificate in CALLYARD_KAFKA_SSL_CAFILE"),
    "CA not set": (lambda bus: bus.scram(user("node"), ssl_cafile=None), "CALLYARD_KAFKA_SSL_CAFILE"),
    "certificate expired": (lambda bus: bus.scram(user("node"), "EXPIRED"), "its certificate, or that of its CA, has"),
    "certificate of another name": (lambda bus: bus.scram(user("node"), "OTHERNAME"),
                                    "its certificate is for another name (IP address mismatch"),
    "no client certificate": (lambda bus: bus.mutual(user("node"), ssl_certfile=None, ssl_keyfile=None),
                              "it asks for a client's certificate: set CALLYARD_KAFKA_SSL_CERTFILE"),
    "client certificate of another CA": (lambda bus: certified(bus, foreign(bus)),
                                         "it refuses this client's certificate"),
    "client certificate expired": (lambda bus: certified(bus, bus.authority, expired=True),
                                   "it refuses this client's certificate"),
    "plain at a TLS port": (lambda bus: bus.scram(user("node"), security_protocol=SecurityProtocol.PLAINTEXT),
                            "it speaks TLS on this port, and CALLYARD_KAFKA_SECURITY_PROTOCOL is PLAINTEXT"),
    "TLS at a plain port": (lambda bus: bus.scram(user("node"), "PLAINTEXT"),
                            "it speaks no TLS on this port, and CALLYARD_KAFKA_SECURITY_PROTOCOL is SASL_SSL"),
    "password missing": (lambda bus: bus.mutual("admin", bootstrap_servers=bus.scram("x").bootstrap_servers),
                         "it may want a user and a password, and CALLYARD_KAFKA_SECURITY_PROTOCOL is SSL"),
    "no rights": (lambda bus: bus.scram("stranger"),
                  "callyard.calls is missing, or may not be looked at with these credentials"),
}  # fmt: skip


def test_topics_are_made_with_an_administrators_credentials(
    bus: Secured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in environment(bus.scram(user("stream")), tmp_path).items():
        monkeypatch.setenv(name, value)
    asyncio.run(on_kafka.delete_topics(bus.admin))
    assert main(["topics"]) == 1
    err = capfd.readouterr().err
    assert f"{TOPICS['calls']} could not be created: TopicAuthorizationFailedError" in err
    assert err.count("(topics are made with an administrator's credentials)") == len(TOPICS)


async def test_the_doctor_says_what_is_missing_and_what_is_too_much(made: Secured) -> None:
    right = await doctor_checks.bus(made.mutual(user("gateway")), "gateway", GATEWAY)
    assert {finding.level for finding in right} == {Level.FINE}
    [little] = [found for found in await doctor_checks.bus(made.scram(user("auditor")), "node") if found.advice]
    assert little.level is Level.WRONG
    assert f"user callyard-auditor may not write {TOPICS['registrations']}, {TOPICS['rejected']}" in little.text
    [much] = [found for found in await doctor_checks.bus(made.scram(user("stream")), "auditor") if found.advice]
    assert much.level is Level.WRONG
    [much] = [found for found in await doctor_checks.bus(made.admin, "gateway", GATEWAY) if found.advice]
    assert much.level is Level.WARNING
    assert f"AlterConfigs, Create, Delete, Read, Write on {TOPICS['registrations']}" in much.text.replace("Alter, ", "")
    assert much.text.endswith(f"AlterConfigs, Delete, DescribeConfigs on {agent_group(SETTINGS, GATEWAY)}")


@pytest.mark.parametrize("case", WORDS)
def test_a_kafka_that_cannot_be_used_is_explained(
    bus: Secured, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    settings, words = WORDS[case]
    for name, value in environment(settings(bus), tmp_path).items():
        monkeypatch.setenv(name, value)
    asyncio.run(on_kafka.create_topics(bus.admin))
    assert main(["topics", "--check"]) == 1
    err = capfd.readouterr().err
    assert words in err
    assert "Traceback" not in err
    assert "horse" not in err
    assert case == "no rights" or len(err.splitlines()) == 1, err


async def test_a_worker_that_lacks_something_says_what_and_ends(
    made: Secured, gateway: asterisk.Gateway, tmp_path: Path
) -> None:
    node = environment(made.scram(user("node")), tmp_path)
    stranger, agents = (
        environment(made.scram("stranger"), tmp_path),
        environment(made.mutual(user("gateway")), tmp_path),
    )
    wrong = environment(made.scram(user("stream"), sasl_password="wrong-horse"), tmp_path)
    own = agent_environment(gateway.ami)
    hooks = {"CALLYARD_NODE_SIP_URI": "sip:{conference}@192.0.2.7:5060", "CALLYARD_ESL_PASSWORD": "ClueCon"}
    advice = ": give it the rights of {} ('callyard rights {}' prints the commands; docs/security.md)"
    every = ", ".join(TOPICS.values())
    wanted = {
        ("stream", "as a node", *node.items()): [
            f"user callyard-node may not read {TOPICS['registrations']}, {TOPICS['calls']}, {TOPICS['timers']},"
            f" {TOPICS['changelog']}, callyard-stream" + advice.format("the stream", "stream"),
            f"user callyard-node may not write {TOPICS['timers']}, {TOPICS['dials']}, {TOPICS['journal']},"
            f" {TOPICS['changelog']}" + advice.format("the stream", "stream"),
        ],
        ("hook", "as a stranger", *stranger.items(), *hooks.items()): [
            f"user stranger may not {verb} {names}" + advice.format("a node", "node")
            for verb, names in (("look at", every), ("read the settings of", every),
                                ("write", f"{TOPICS['registrations']}, {TOPICS['rejected']}"))
        ],
        ("agent", "as another gateway", *agents.items(), *own.items(), ("CALLYARD_GATEWAY_ID", "gw-2")): [
            "the certificate CN=callyard-gateway may not read callyard-agent-gw-2"
            + advice.format("a gateway", "gateway")
        ],
        ("stream", "wrong password", *wrong.items()): [
            f"Kafka at {made.scram('x').bootstrap_servers} can't be used: it refuses user callyard-stream or the"
            " password: check CALLYARD_KAFKA_SASL_USERNAME and CALLYARD_KAFKA_SASL_PASSWORD, and that the user exists"
            " for SCRAM-SHA-512"
        ],
    }  # fmt: skip
    children = [
        worker(command, environment=dict(variables), log=tmp_path / f"{command} {name}.log")
        for command, name, *variables in wanted
    ]
    for child in children:
        child.start()
    try:
        for child, words in zip(children, wanted.values(), strict=True):
            assert await asyncio.wait_for(child.wait(), 60) == 1
            assert [fields["error"] for fields in logged(child, "ended")] == words
            assert "Traceback" not in child.tail()
            assert all(line.startswith("{") for line in child.lines())
            assert not secrets(child.log)
    finally:
        for child in children:
            await child.stop()


# --- a right that goes while a worker runs ----------------------------------------------------------------------------

ACLS = "kafka-acls --bootstrap-server $BROKER --command-config admin.properties"


@contextlib.asynccontextmanager
async def without(bus: Secured, role: str, right: str) -> AsyncIterator[None]:
    """Take a right away from a role's user, and give it back at the end."""
    words = f"--allow-principal User:{user(role)} {right}"
    await bus.run(f"{ACLS} --remove --force {words}")
    try:
        yield
    finally:
        await bus.run(f"{ACLS} --add {words}")


async def test_a_hook_that_loses_its_right_says_so_and_loses_nothing(made: Secured, tmp_path: Path) -> None:
    port, series = free_port(), f'callyard_refused_total{{resource="{TOPICS["registrations"]}"}}'
    of_node = {name.removeprefix("CALLYARD_"): v for name, v in environment(made.scram(user("node")), tmp_path).items()}
    async with freeswitch.FreeSwitch() as double:
        child = hook(None, double.port, tmp_path / "log", **of_node, NODE_RENEW_SECONDS="1", HEALTH_PORT=str(port))
        child.start()
        try:
            await child.ready(30)
            double.open("49123")
            await registrations(made.admin, 1)
            assert await metric(port, series) is None
            async with without(made, "node", f"--operation Write --topic {TOPICS['registrations']}"):
                double.open("49124")
                double.close("49123")
                await until(lambda: told(child), 20, what="the hook says so")
                double.open("49125")
                assert await until(lambda: metric(port, series), 20, what="it counts") > 0
                assert child.running
            await until(lambda: events(child, "Kafka takes records again"), 20, what="it goes on")
            wanted = {("conference-registered", "49124"), ("conference-registered", "49125"),
                      ("conference-unregistered", "49123")}  # fmt: skip
            await registrations(made.admin, lambda found: wanted <= {(one.type, one.conference) for one in found})
        finally:
            await child.stop()
    assert len(told(child)) == 1, "said once"
    assert "Traceback" not in "\n".join(child.lines())


def told(child: Child) -> list[str]:
    """Warnings and errors that name a right."""
    lines = [orjson.loads(line) for line in child.lines()]
    whys = [str(fields.get("reason") or fields.get("why")) for fields in lines]
    return [why for why in whys if " may not " in why and "give it the rights of a" in why]


async def test_an_agent_that_loses_its_rights_says_so_and_loses_nothing(
    made: Secured, gateway: asterisk.Gateway, tmp_path: Path
) -> None:
    first, second, port = conference_number(), conference_number(), free_port()
    settings = made.mutual(user("gateway"))
    more = {name.removeprefix("CALLYARD_"): value for name, value in environment(settings, tmp_path).items()}
    child = agent(made.admin, gateway.ami, tmp_path / "log", **{**more, "HEALTH_PORT": str(port)})
    entrance = (gateway.sip_host, gateway.sip_port)
    child.start()
    try:
        await child.ready(30)
        async with contextlib.AsyncExitStack() as stack:
            async with without(made, "gateway", f"--operation Write --topic {TOPICS['calls']}"):
                for number in (first, second):
                    call = sipp.Call("+49301234567", f"{number}#")
                    caller = await stack.enter_async_context(sipp.calling(tmp_path / number, entrance, [call]))
                    await caller.saw("answered", 1, timeout=20)
                await until(lambda: named(child, TOPICS["calls"]), 20, what="it may not write")
            parked = [(await said(made.admin, number, has("caller-parked")))[0] for number in (first, second)]
            async with without(made, "gateway", f"--operation Read --topic {TOPICS['dials']}"):
                await until(lambda: named(child, TOPICS["dials"]), 20, what="it may not read")
                await instruct(made.admin, dial(parked[0], "sip:x@127.0.0.1:9;transport=tcp"))
            await said(made.admin, first, has("dial-started"))
            group = agent_group(SETTINGS, GATEWAY)
            async with without(made, "gateway", f"--operation Read --group {group}"):
                await until(lambda: named(child, group), 20, what="it may not join")
                await instruct(made.admin, dial(parked[1], "sip:x@127.0.0.1:9;transport=tcp"))
            await said(made.admin, second, has("dial-started"), timeout=40)
            for resource in (TOPICS["calls"], TOPICS["dials"], group):
                assert await metric(port, f'callyard_refused_total{{resource="{resource}"}}'), resource
            await until(lambda: logged(child, "instructions can be read again"), 20, what="it says that it can")
        assert child.running
    finally:
        await child.stop()
    assert "Traceback" not in "\n".join(child.lines())


def named(child: Child, resource: str) -> list[str]:
    return [why for why in told(child) if f" {resource}: " in why]


async def test_a_stream_that_loses_a_right_ends_and_its_next_start_says_what_was_unsaid(
    made: Secured, tmp_path: Path
) -> None:
    variables = environment(made.mutual(user("stream")), tmp_path)
    child = worker("stream", environment=variables, log=tmp_path / "log")
    child.start()
    try:
        await child.ready(60)
        async with without(made, "stream", f"--operation Write --topic {TOPICS['dials']}"):
            await on_kafka.send(made.admin, TOPICS["registrations"], ("49123", records.registered()))
            await on_kafka.send(made.admin, TOPICS["calls"], ("49123", records.parked()))
            assert await asyncio.wait_for(child.wait(), 30) == 70
            assert "Traceback" not in "\n".join(child.lines())
            assert any("Kafka refuses it" in line and TOPICS["dials"] in line for line in child.lines())
            child.start()
            assert await asyncio.wait_for(child.wait(), 60) == 1
            [ended] = logged(child, "ended")
            assert f"may not write {TOPICS['dials']}: give it the rights of the stream" in ended["error"]
        child.start()
        await child.ready(60)
        [instruction] = await instructions(made.admin, 1)
        assert instruction.conference == "49123"
    finally:
        await child.stop()


# --- credentials change -----------------------------------------------------------------------------------------------


async def test_a_password_and_a_certificate_are_changed(bus: Secured) -> None:
    old, new = bus.scram("stranger"), bus.scram("stranger", sasl_password="new-horse")
    async with clients.admin(old):
        (bus.directory / "new").write_text("SCRAM-SHA-512=iterations=8192,password=new-horse\n")
        await bus.run(
            "kafka-configs --bootstrap-server $BROKER --command-config admin.properties --alter --entity-type users"
            " --entity-name stranger --add-config-file new"
        )
        async with clients.admin(new):
            pass
        with pytest.raises(clients.KafkaUnreachableError, match="refuses user stranger"):
            async with clients.admin(old):
                pass
    async with clients.admin(certified(bus, bus.authority)) as admin:
        assert await admin.list_topics() is not None


# --- what is printed --------------------------------------------------------------------------------------------------


def test_callyard_rights_prints_what_the_tests_above_have_run(capsys: pytest.CaptureFixture[str]) -> None:
    for role in ROLES:
        assert main(["rights", role]) == 0
        assert capsys.readouterr().out.splitlines() == commands(SETTINGS, role, f"User:{user(role)}")
    assert main(["rights", "gateway", "--gateway", GATEWAY, "--principal", "User:CN=gw 1,O=x", "--json"]) == 0
    found = orjson.loads(capsys.readouterr().out)
    assert {right["principal"] for right in found} == {"User:CN=gw 1,O=x"}
    assert [right["name"] for right in found] == [right.name for right in rights(SETTINGS, GATEWAY)["gateway"]]
    assert main(["rights", "node", "--strimzi", "--cluster", "bus", "--authentication", "tls"]) == 0
    out = capsys.readouterr().out
    assert "  name: callyard-node\n  labels:\n    strimzi.io/cluster: bus\n" in out
    assert out.count("      operations: [Write]") == 2


@pytest.mark.parametrize(
    "words",
    [["boss"], ["node", "--principal", "me"], ["node", "--principal", "User:a' x"], ["node", "--gateway", "gw-1"],
     ["gateway", "--gateway", "a b"], ["node", "--strimzi", "--principal", "User:A_b"],
     ["node", "--strimzi", "--authentication", "none"]],
)  # fmt: skip
def test_a_wrong_use_of_callyard_rights_is_told(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rights", *words]) == 2
    assert capsys.readouterr().err
