"""``callyard doctor node``: each thing that can be wrong is found, and told with what to do."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from pydantic import SecretStr

from callyard import doctor_checks
from callyard.doctor import Finding, Level
from callyard.main import main
from callyard.parts.freeswitch import FreeSwitch
from callyard.processes import free_port
from callyard.settings import EslSettings, FreeswitchSettings, KafkaSettings, NodeSettings
from fs_hooks import doctor
from fs_hooks.render import dialplan

NODE = NodeSettings(id="node-1", sip_uri="sip:{conference}@192.0.2.7:5060;transport=tcp")
SETTINGS = FreeswitchSettings(gateways="192.0.2.10,2001:db8:5::/48")
PASSWORD = "its-own"


def public(settings: FreeswitchSettings = SETTINGS, *, before: str = "", after: str = "") -> str:
    ours = dialplan(settings, NODE.exclude).replace("<include>", "").replace("</include>", "")
    return f'<context name="public"><extension name="unloop"/>{before}{ours}{after}</context>'


def esl(freeswitch: FreeSwitch, password: str = PASSWORD) -> EslSettings:
    return EslSettings(port=freeswitch.port, password=SecretStr(password))


def wrong(findings: list[Finding]) -> list[str]:
    assert all(finding.advice for finding in findings if finding.level is not Level.FINE)
    return [f"{finding.check}: {finding.text}" for finding in findings if finding.level is not Level.FINE]


async def examine(freeswitch: FreeSwitch, password: str = PASSWORD) -> list[Finding]:
    return await doctor.freeswitch(esl(freeswitch, password), SETTINGS, NODE)


async def test_a_node_that_is_well() -> None:
    async with FreeSwitch(PASSWORD) as freeswitch:
        freeswitch.open("49123")
        freeswitch.api.dialplan = public(after='<extension name="bbb_webrtc_call"/>')
        variables = dict(freeswitch.api.variables)
        findings = await examine(freeswitch)
        assert wrong(findings) == []
        assert {finding.check for finding in findings} == {"event socket", "vouching", "acl", "dialplan"}
        assert freeswitch.api.variables == variables, "it changes nothing"


@pytest.mark.parametrize(
    ("loaded", "said"),
    [
        (None, "has no context 'public'"),
        ('<context name="public"><extension name="unloop"/></context>', "isn't loaded"),
        (public(FreeswitchSettings(gateways="192.0.2.11")), "isn't the one that these settings render"),
        (public().replace("404 Not Found", "200 OK"), "isn't the one that these settings render"),
        (public(before='<extension name="mine"/>'), "stand before Callyard's, and may take gateways' calls: mine"),
        (
            public().replace("callyard_conference", "x").replace("callyard_refused", "callyard_conference")
            .replace('name="x"', 'name="callyard_refused"'),
            "isn't the one",
        ),
    ],
)  # fmt: skip
async def test_the_dialplan_that_is_loaded_is_compared(loaded: str | None, said: str) -> None:
    async with FreeSwitch(PASSWORD) as freeswitch:
        freeswitch.api.dialplan = loaded
        assert any(said in text for text in wrong(await examine(freeswitch)))


async def test_what_freeswitch_refuses_is_named() -> None:
    async with FreeSwitch(PASSWORD) as freeswitch:
        freeswitch.api.dialplan = public()
        [found] = wrong(await examine(freeswitch, "not-its-own"))
        assert "refuses the password" in found
        freeswitch.denied.add("conference")
        [found] = wrong(await examine(freeswitch))
        assert "api conference" in found
        assert "permission denied" in found
        freeswitch.stop_listening()
        [found] = wrong(await examine(freeswitch))
        assert "can't be reached" in found


async def test_the_default_password_is_wrong() -> None:
    async with FreeSwitch() as freeswitch:
        freeswitch.api.dialplan = public()
        [found] = wrong(await examine(freeswitch, "ClueCon"))
        assert "well-known default" in found


async def test_a_clock_that_is_off_and_commands_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FreeSwitch(PASSWORD) as freeswitch:
        freeswitch.api.dialplan = public()
        clock = freeswitch.api.clock
        freeswitch.api.clock = lambda: clock() + 60
        [found] = wrong(await examine(freeswitch))
        assert "clock differs by" in found
        execute = freeswitch.api.execute
        monkeypatch.setattr(freeswitch.api, "execute", lambda name, a: None if name == "cond" else execute(name, a))
        [found] = wrong(await examine(freeswitch))
        assert "cond Command not found" in found
        monkeypatch.setattr(freeswitch.api, "execute", lambda name, a: "false" if name == "acl" else execute(name, a))
        assert any("doesn't find 192.0.2.10 in" in text for text in wrong(await examine(freeswitch)))


@pytest.mark.parametrize(
    ("uri", "target"),
    [
        ("sip:49123@192.0.2.7", ("192.0.2.7", 5060, "udp")),
        ("sip:49123@192.0.2.7:5080;transport=tcp", ("192.0.2.7", 5080, "tcp")),
        ("sip:49123@192.0.2.7;transport=tls", ("192.0.2.7", 5061, "tls")),
        ("sips:49123@bbb.example.org", ("bbb.example.org", 5061, "tls")),
        ("sip:49123@[2001:db8::7]:5060;transport=tcp", ("2001:db8::7", 5060, "tcp")),
    ],
)
def test_where_a_uri_leads(uri: str, target: tuple[str, int, str]) -> None:
    assert doctor._target(uri) == target


async def test_an_address_that_gateways_cannot_use() -> None:
    async def accept(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        findings = await doctor.address(node(f"sip:{{conference}}@127.0.0.1:{port};transport=tcp"))
        assert [finding.level for finding in findings] == [Level.WRONG, Level.FINE]
    assert any(
        "nothing takes SIP" in text
        for text in wrong(await doctor.address(node(f"sip:{{conference}}@127.0.0.1:{port};transport=tcp")))
    )
    assert any(
        "has no address" in text for text in wrong(await doctor.address(node("sip:{conference}@nowhere.invalid")))
    )
    assert any("UDP isn't tried" in text for text in wrong(await doctor.address(node("sip:{conference}@192.0.2.7"))))


def node(uri: str, exclude: str = "99999") -> NodeSettings:
    return NodeSettings(id="node-1", sip_uri=uri, exclude=exclude)


async def test_the_test_bridge_must_be_left_out() -> None:
    assert wrong(await doctor.numbers(node(NODE.sip_uri, "70000, 99999"))) == []
    assert len(wrong(await doctor.numbers(node(NODE.sip_uri, "70000")))) == 1


async def test_the_kernel_is_asked_for_its_clock() -> None:
    [finding] = await doctor_checks.kernel_clock()
    assert finding.level in {Level.FINE, Level.WARNING}


async def test_a_kafka_that_is_not_there() -> None:
    kafka = KafkaSettings(bootstrap_servers=f"127.0.0.1:{free_port()}", request_timeout_ms=500)
    [found] = wrong(await doctor_checks.bus(kafka, "node"))
    assert "no Kafka answers" in found


@pytest.mark.kafka
async def test_kafka_and_its_topics(kafka_settings: KafkaSettings) -> None:
    assert wrong(await doctor_checks.bus(kafka_settings, "node")) == []
    [found] = wrong(await doctor_checks.bus(kafka_settings.model_copy(update={"topic_prefix": "other"}), "node"))
    assert "is missing" in found


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "node"]) == 2
    assert "CALLYARD_ESL_PASSWORD is not set" in capsys.readouterr().err
    config = tmp_path / "node.toml"
    config.write_text(
        f'[node]\nsip_uri = "{NODE.sip_uri}"\n[freeswitch]\ngateways = "192.0.2.10"\n'
        f'[esl]\npassword = "x"\nport = {free_port()}\n'
        f'[kafka]\nbootstrap_servers = "127.0.0.1:{free_port()}"\nrequest_timeout_ms = 500\n'
    )
    monkeypatch.setattr(doctor, "PROBE_SECONDS", 0.05)  # 192.0.2.0/24 answers to nobody
    assert main(["doctor", "node", "--config", str(config), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["wrong"] is True
    assert {row["check"] for row in told["findings"]} == {"numbers", "address", "event socket", "clock", "kafka"}
