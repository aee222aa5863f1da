"""``callyard agent`` where something is wrong: settings, topics, a manager interface that breaks off."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from callyard import topics
from callyard.kafka.embedded import EmbeddedKafka
from callyard.processes import Child
from callyard.records import CallerLeft, CallerParked, DialFailed, FailureReason, LeftReason
from callyard.settings import KafkaSettings
from tests.conftest import unique_settings
from tests.support import kafka as kafka_support
from tests.support.agent import GATEWAY, agent, dial, has, instruct, logged, running, said, types
from tests.support.ami import Action, AmiDouble, Connection, ami_double
from tests.support.ports import free_port
from tests.support.wait import until

pytestmark = pytest.mark.kafka

CONFERENCE = "49123"
TRYING = "no session with Asterisk; trying again"
URI = "sip:49123@192.0.2.7:5060;transport=tcp"


@pytest_asyncio.fixture
async def double() -> AsyncIterator[AmiDouble]:
    async with ami_double() as made:
        yield made


def marks(prefix: str, state: str = "parked", mark: str = "", failed: str = "") -> tuple[str, ...]:
    values = {"CONFERENCE": CONFERENCE, "STAY": "1", "STATE": state, "MARK": mark, "FAILED": failed}
    return tuple(f"{prefix}: CALLYARD_{name}={value}" for name, value in values.items())


def park(double: AmiDouble, number: int = 1) -> str:
    """A call that waits at the double; returns its call id."""
    uniqueid = f"{number}.0"
    channel = f"PJSIP/callyard-trunk-{number:08}"
    double.parked.append(
        ("Event: ParkedCall", f"ParkeeUniqueid: {uniqueid}", f"ParkeeChannel: {channel}", *marks("ParkeeChanVariable"))
    )
    double.channels.append(("Event: Status", f"Uniqueid: {uniqueid}", f"Channel: {channel}", *marks("Variable")))
    return f"{GATEWAY}/{uniqueid}"


def waiting(call_id: str) -> CallerParked:
    return CallerParked(sender="test", conference=CONFERENCE, gateway_id=GATEWAY, call_id=call_id, stay=1)


async def ends(child: Child) -> str:
    """Start a worker that must end by itself with status 1; what it said."""
    child.start()
    assert await child.wait() == 1
    return "\n".join(child.lines())


async def test_a_wrong_secret_ends_the_agent_with_words_that_help(
    kafka_settings: KafkaSettings, double: AmiDouble, tmp_path: Path
) -> None:
    said_so = await ends(agent(kafka_settings, double.settings(secret="a-wrong-one"), tmp_path / "log"))
    assert "refuses the manager user 'callyard'" in said_so
    assert "CALLYARD_AMI_SECRET" in said_so
    assert "a-wrong-one" not in said_so
    assert "Traceback" not in said_so


async def test_something_that_is_no_asterisk_ends_the_agent(
    kafka_settings: KafkaSettings, double: AmiDouble, tmp_path: Path
) -> None:
    double.greeting = b"SSH-2.0-OpenSSH_9.2p1\r\n"
    said_so = await ends(agent(kafka_settings, double.settings(), tmp_path / "log"))
    assert "not an Asterisk manager" in said_so
    assert "Traceback" not in said_so


async def test_missing_topics_end_the_agent(kafka: EmbeddedKafka, double: AmiDouble, tmp_path: Path) -> None:
    settings = unique_settings(kafka)
    said_so = await ends(agent(settings, double.settings(), tmp_path / "log"))
    assert f"{settings.topic_prefix}.dials is missing: run 'callyard topics'" in said_so
    assert not double.actions


async def test_no_kafka_ends_the_agent(double: AmiDouble, tmp_path: Path) -> None:
    settings = KafkaSettings(bootstrap_servers=f"127.0.0.1:{free_port()}", request_timeout_ms=1000)
    said_so = await ends(agent(settings, double.settings(), tmp_path / "log"))
    assert "no Kafka answers" in said_so


async def test_an_asterisk_that_comes_up_later_is_awaited(kafka_settings: KafkaSettings, tmp_path: Path) -> None:
    port = free_port()
    child = agent(kafka_settings, AmiDouble().settings(port=port), tmp_path / "log")
    child.start()
    try:
        await until(lambda: logged(child, TRYING))
        await until(lambda: logged(child, "instructions read to their end"))
        assert not logged(child, "ready")
        async with ami_double(port):
            await child.ready(20)
        assert len(logged(child, TRYING)) == 1
    finally:
        assert await child.stop() == 0


async def test_an_asterisk_that_refuses_later_may_be_starting_anew(
    kafka_settings: KafkaSettings, double: AmiDouble, tmp_path: Path
) -> None:
    child = agent(kafka_settings, double.settings(), tmp_path / "log")
    async with running(child):
        double.on["Login"] = lambda connection, action: connection.answer(
            action, "Response: Error", "Message: Authentication failed"
        )
        double.connections[-1].abort()
        await double.told("Login", 3)
        del double.on["Login"]
        await until(lambda: len(logged(child, "snapshot taken")) == 2)
        told = [fields["why"] for fields in logged(child, TRYING)]
    assert len(told) == 2
    assert "ended the manager connection" in told[0]
    assert "CALLYARD_AMI_SECRET" in told[1]


async def test_a_redirect_whose_answer_was_lost_is_never_written_again_and_the_caller_is_not_lost(
    kafka_settings: KafkaSettings, double: AmiDouble, tmp_path: Path
) -> None:
    double.on["Redirect"] = lambda connection, _: connection.abort()
    call = waiting(park(double))
    async with running(agent(kafka_settings, double.settings(), tmp_path / "log")):
        await instruct(kafka_settings, dial(call, URI))
        records = await said(kafka_settings, CONFERENCE, has("dial-failed"))
        await instruct(kafka_settings, dial(call, URI))
        del double.on["Redirect"]
        await instruct(kafka_settings, dial(call, URI, attempt=2))
        redirects = await double.told("Redirect", 2)
    [failed] = [record for record in records if isinstance(record, DialFailed)]
    assert (failed.attempt, failed.reason) == (1, FailureReason.NOT_PARKED)
    assert [redirect["Exten"] for redirect in redirects] == ["1x1", "1x2"]
    assert [action["Action"] for action in double.actions if action["Action"] in ("Setvar", "Redirect")] == [
        "Setvar", "Setvar", "Redirect", "Setvar", "Setvar", "Redirect",
    ]  # fmt: skip


async def test_a_redirect_that_was_done_although_its_answer_was_lost_is_told_as_what_it_is(
    kafka_settings: KafkaSettings, double: AmiDouble, tmp_path: Path
) -> None:
    call = waiting(park(double))

    def redirected(connection: Connection, _: Action) -> None:
        double.parked.clear()
        double.channels[0] = (*double.channels[0][:3], *marks("Variable", "dialing", "1x1"))
        connection.abort()

    double.on["Redirect"] = redirected
    async with running(agent(kafka_settings, double.settings(), tmp_path / "log")):
        await instruct(kafka_settings, dial(call, URI))
        records = await said(kafka_settings, CONFERENCE, has("dial-started"))
    assert "dial-failed" not in types(records)
    assert len(double.named("Redirect")) == 1


async def test_a_redirect_refused_because_the_channel_is_gone_ends_the_call(
    kafka_settings: KafkaSettings, double: AmiDouble, tmp_path: Path
) -> None:
    call = waiting(park(double))

    def gone(connection: Connection, action: Action) -> None:
        double.parked.clear()
        double.channels.clear()
        connection.answer(action, "Response: Error", "Message: Channel does not exist: x")

    double.on["Redirect"] = gone
    async with running(agent(kafka_settings, double.settings(), tmp_path / "log")):
        await instruct(kafka_settings, dial(call, URI))
        records = await said(kafka_settings, CONFERENCE, has("caller-left"))
    assert isinstance(records[-1], CallerLeft)
    assert records[-1].reason is LeftReason.GONE


async def test_instructions_that_came_while_asterisk_was_away_are_carried_out_by_the_newest_attempt(
    kafka_settings: KafkaSettings, double: AmiDouble, tmp_path: Path
) -> None:
    calls = [waiting(park(double, number)) for number in (1, 2)]
    child = agent(kafka_settings, double.settings(), tmp_path / "log")
    async with running(child):
        login = double.on["Login"] = lambda connection, _: connection.abort()
        double.connections[-1].abort()
        await until(lambda: logged(child, TRYING))
        await instruct(kafka_settings, *(dial(call, URI, attempt) for attempt in (1, 2, 3) for call in calls))
        assert login is double.on.pop("Login")
        redirects = await double.told("Redirect", 2)
        await said(kafka_settings, CONFERENCE, lambda found: types(found).count("caller-parked") >= 4)
    assert sorted(redirect["Exten"] for redirect in redirects) == ["1x3", "1x3"]


async def test_what_asterisk_says_and_nobody_understands_is_set_aside(
    kafka_settings: KafkaSettings, double: AmiDouble, tmp_path: Path
) -> None:
    async with running(agent(kafka_settings, double.settings(), tmp_path / "log")):
        event = ("Event: ParkedCall", "ParkeeUniqueid: 9.0", "ParkeeChannel: PJSIP/x-9")
        double.connections[-1].message(*event, *marks("ParkeeChanVariable", state="sleeping"))
        name = topics.topics(kafka_settings).rejected.name
        [record] = await kafka_support.read(kafka_settings, name, enough=1)
        park(double)
        double.connections[-1].message(*double.parked[0])
        await said(kafka_settings, CONFERENCE, has("caller-parked"))
    assert dict(record.headers)["callyard-source"] == b"ami"
    assert b"CALLYARD_STATE is unknown" in dict(record.headers)["callyard-reason"]
    assert b"sleeping" in record.value


async def test_a_herd_of_callers_is_redirected_side_by_side(
    kafka_settings: KafkaSettings, double: AmiDouble, tmp_path: Path
) -> None:
    calls = [waiting(park(double, number)) for number in range(1, 201)]
    held: list[tuple[Connection, Action]] = []
    double.on["Redirect"] = lambda connection, action: held.append((connection, action))
    async with running(agent(kafka_settings, double.settings(), tmp_path / "log")):
        await instruct(kafka_settings, *(dial(call, URI) for call in calls))
        # None of them is answered, and yet all are written.
        await double.told("Redirect", 200)
    assert len(held) == 200
