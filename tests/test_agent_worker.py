"""``callyard agent`` as a process, between a real Asterisk with real SIP callers and a real Kafka."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from callyard import topics
from callyard.kafka import embedded
from callyard.parts import asterisk, sipp
from callyard.records import (
    CallerConnected,
    CallerLeft,
    CallerParked,
    CallRecord,
    DialFailed,
    FailureReason,
    LeftReason,
)
from callyard.settings import KafkaSettings
from tests.conftest import unique_settings
from tests.support import kafka as kafka_support
from tests.support.agent import GATEWAY, agent, dial, has, instruct, logged, running, said, types
from tests.support.asterisk import conference_number
from tests.support.wait import until

pytestmark = [pytest.mark.kafka, pytest.mark.asterisk]

NUMBER = "+4930123456"


@asynccontextmanager
async def caller(gateway: asterisk.Gateway, directory: Path, conference: str) -> AsyncIterator[sipp.Sipp]:
    """Somebody who calls and enters the number of a conference."""
    calls = [sipp.Call(NUMBER, f"{conference}#")]
    async with sipp.calling(directory / "callers", (gateway.sip_host, gateway.sip_port), calls) as calling:
        yield calling


async def parked(settings: KafkaSettings, conference: str) -> CallRecord:
    return (await said(settings, conference, has("caller-parked")))[0]


async def test_a_caller_from_parking_into_the_conference_and_out(
    kafka_settings: KafkaSettings, gateway: asterisk.Gateway, tmp_path: Path
) -> None:
    conference = conference_number()
    async with running(agent(kafka_settings, gateway.ami, tmp_path / "log")), sipp.node(tmp_path) as node:
        async with caller(gateway, tmp_path, conference) as calling:
            call = await parked(kafka_settings, conference)
            assert isinstance(call, CallerParked)
            assert call.caller == "+493012****"
            assert call.sender == f"agent:{GATEWAY}"
            await instruct(kafka_settings, dial(call, node.uri(conference)))
            records = await said(kafka_settings, conference, has("caller-connected"))
            assert types(records) == ["caller-parked", "dial-started", "caller-connected"]
            assert [event.conference for event in node.events("called")] == [conference]
            await calling.hang_up()
        records = await said(kafka_settings, conference, has("caller-left"))
    left = records[-1]
    assert isinstance(left, CallerLeft)
    assert left.reason is LeftReason.CONFERENCE_LEFT
    assert len({record.sender_sequence for record in records}) == len(records)
    assert [record.sender_sequence for record in records] == sorted(record.sender_sequence for record in records)


async def test_a_caller_who_hangs_up_while_waiting_has_left(
    kafka_settings: KafkaSettings, gateway: asterisk.Gateway, tmp_path: Path
) -> None:
    conference = conference_number()
    async with (
        running(agent(kafka_settings, gateway.ami, tmp_path / "log")),
        caller(gateway, tmp_path, conference) as calling,
    ):
        call = await parked(kafka_settings, conference)
        await calling.hang_up()
        await said(kafka_settings, conference, has("caller-left"))
        # What the stream instructed before it heard of that changes nothing, and is told again as gone.
        await instruct(kafka_settings, dial(call, "sip:1@127.0.0.1:9"))
        records = await said(kafka_settings, conference, lambda found: len(found) == 3)
    assert types(records) == ["caller-parked", "caller-left", "caller-left"]
    assert [record.reason for record in records if isinstance(record, CallerLeft)] == [
        LeftReason.HANGUP,
        LeftReason.GONE,
    ]


async def test_a_node_that_does_not_know_the_conference_parks_the_caller_again_for_the_next_attempt(
    kafka_settings: KafkaSettings, gateway: asterisk.Gateway, tmp_path: Path
) -> None:
    conference = conference_number()
    async with (
        running(agent(kafka_settings, gateway.ami, tmp_path / "log")),
        sipp.node(tmp_path / "ghost", behaviour="404 Not Found") as ghost,
        sipp.node(tmp_path / "good") as good,
        caller(gateway, tmp_path, conference),
    ):
        call = await parked(kafka_settings, conference)
        await instruct(kafka_settings, dial(call, ghost.uri(conference)))
        records = await said(kafka_settings, conference, has("dial-failed"))
        failed = records[-1]
        assert isinstance(failed, DialFailed)
        assert (failed.attempt, failed.reason, failed.sip_code) == (1, FailureReason.NOT_FOUND, 404)
        # Told when the caller is really in the lot again: the next attempt finds it there.
        await instruct(kafka_settings, dial(call, good.uri(conference), attempt=2))
        records = await said(kafka_settings, conference, has("caller-connected"))
        assert isinstance(records[-1], CallerConnected)
        assert records[-1].attempt == 2
        assert types(records) == ["caller-parked", "dial-started", "dial-failed", "dial-started", "caller-connected"]


async def test_an_instruction_is_refused_after_its_deadline_by_the_brokers_clock(
    kafka_settings: KafkaSettings, gateway: asterisk.Gateway, tmp_path: Path
) -> None:
    conference = conference_number()
    child = agent(kafka_settings, gateway.ami, tmp_path / "log")
    async with running(child), sipp.node(tmp_path) as node, caller(gateway, tmp_path, conference):
        call = await parked(kafka_settings, conference)
        late = dial(call, node.uri(conference))
        await instruct(kafka_settings, late.model_copy(update={"deadline_ms": late.issued_at_ms - 1}))
        records = await said(kafka_settings, conference, has("dial-failed"))
        assert isinstance(records[-1], DialFailed)
        assert (records[-1].attempt, records[-1].reason) == (1, FailureReason.EXPIRED)
        await instruct(kafka_settings, dial(call, node.uri(conference), attempt=2))
        records = await said(kafka_settings, conference, has("caller-connected"))
    assert types(records) == ["caller-parked", "dial-failed", "dial-started", "caller-connected"]
    assert len(node.events("called")) == 1


async def test_what_is_no_instruction_or_none_to_this_gateway_changes_nothing(
    kafka_settings: KafkaSettings, gateway: asterisk.Gateway, tmp_path: Path
) -> None:
    conference = conference_number()
    names = topics.topics(kafka_settings)
    child = agent(kafka_settings, gateway.ami, tmp_path / "log")
    async with running(child), sipp.node(tmp_path) as node, caller(gateway, tmp_path, conference):
        call = await parked(kafka_settings, conference)
        good = dial(call, node.uri(conference), epoch=7)
        rubbish = [b"\xff\xfe", b"{}", good.encode().replace(b"sip:", b"tel:"), good.encode().replace(b":1,", b":99,")]
        foreign = dial(call, node.uri(conference), gateway_id="gw-2", call_id=call.call_id.replace(GATEWAY, "gw-2"))
        await kafka_support.send(kafka_settings, names.dials.name, *((GATEWAY, value) for value in rubbish))
        await instruct(kafka_settings, foreign, dial(call, node.uri(conference), stay=2), good)
        await instruct(kafka_settings, good, dial(call, node.uri(conference), attempt=2, epoch=6))
        records = await said(kafka_settings, conference, has("caller-connected", "dial-failed"))
        rejected = await kafka_support.read(kafka_settings, names.rejected.name, enough=4)
        await until(lambda: len(logged(child, "instruction of an epoch that is over")) == 1)
    assert sorted(record.value for record in rejected) == sorted(rubbish)
    assert all(dict(record.headers)["callyard-reason"] for record in rejected)
    assert {dict(record.headers)["callyard-source"] for record in rejected} == {names.dials.name.encode()}
    assert len(node.events("called")) == 1
    failed = [record for record in records if isinstance(record, DialFailed)]
    assert [(record.stay, record.reason) for record in failed] == [(2, FailureReason.NOT_PARKED)]


async def test_an_agent_killed_while_dialling_tells_what_the_channel_says_and_dials_no_second_time(
    kafka_settings: KafkaSettings, tmp_path: Path
) -> None:
    conference = conference_number()
    async with (
        asterisk.running(tmp_path / "gateway", dial_seconds=60) as gateway,
        sipp.node(tmp_path, behaviour=sipp.SILENT) as node,
        caller(gateway, tmp_path, conference),
    ):
        first = agent(kafka_settings, gateway.ami, tmp_path / "first")
        async with running(first):
            call = await parked(kafka_settings, conference)
            wanted = dial(call, node.uri(conference))
            await instruct(kafka_settings, wanted)
            await node.saw("called")
            await first.kill()
        async with running(agent(kafka_settings, gateway.ami, tmp_path / "second")):
            # Read again, since nothing was committed; and instructed once more.
            await instruct(kafka_settings, wanted)
            records = await said(
                kafka_settings,
                conference,
                lambda found: has("call-alive")(found) and types(found).count("dial-started") > 2,
            )
        assert len(node.events("called")) == 1
        assert "dial-failed" not in types(records)


async def test_of_two_replicas_one_speaks_and_the_other_takes_over(
    kafka_settings: KafkaSettings, gateway: asterisk.Gateway, tmp_path: Path
) -> None:
    before, after = conference_number(), conference_number()
    first = agent(kafka_settings, gateway.ami, tmp_path / "first")
    second = agent(kafka_settings, gateway.ami, tmp_path / "second")
    async with sipp.node(tmp_path) as node, running(first, second):
        assert (await first.ready(1))["role"] == "owner"
        assert (await second.ready(1))["role"] == "standby"
        calls = [sipp.Call(NUMBER, f"{number}#") for number in (before, after)]
        async with sipp.calling(tmp_path, (gateway.sip_host, gateway.sip_port), calls):
            call, waiting = await parked(kafka_settings, before), await parked(kafka_settings, after)
            await instruct(kafka_settings, dial(call, node.uri(before)))
            records = await said(kafka_settings, before, has("caller-connected"))
            assert types(records) == ["caller-parked", "dial-started", "caller-connected"]
            await first.kill()
            # Nobody speaks until the group's session of the dead one is over.
            await instruct(kafka_settings, dial(waiting, node.uri(after)))
            records = await said(kafka_settings, after, has("caller-connected"), timeout=30)
            assert types(records) == ["caller-parked", "caller-parked", "dial-started", "caller-connected"]
            assert [event.conference for event in node.events("called")] == [before, after]


async def test_the_calls_of_an_asterisk_that_died_are_gone(kafka_settings: KafkaSettings, tmp_path: Path) -> None:
    conference = conference_number()
    async with asterisk.running(tmp_path / "gateway") as gateway:
        child = agent(kafka_settings, gateway.ami, tmp_path / "log")
        async with running(child), caller(gateway, tmp_path, conference) as calling:
            await parked(kafka_settings, conference)
            await gateway.kill()
            await gateway.start()
            records = await said(kafka_settings, conference, has("caller-left"))
            await calling.kill()
        assert isinstance(records[-1], CallerLeft)
        assert records[-1].reason is LeftReason.GONE


async def test_calls_that_come_while_kafka_is_away_are_told_when_it_is_back(
    gateway: asterisk.Gateway, tmp_path: Path
) -> None:
    ends, stays = conference_number(), conference_number()
    async with embedded.running(tmp_path / "kafka") as kafka:
        settings = unique_settings(kafka)
        await kafka_support.create_topics(settings)
        child = agent(settings, gateway.ami, tmp_path / "log", KAFKA_REQUEST_TIMEOUT_MS="1000")
        async with running(child), caller(gateway, tmp_path, ends) as calling:
            await parked(settings, ends)
            await kafka.kill()
            await calling.hang_up()
            async with caller(gateway, tmp_path / "later", stays):
                await until(lambda: any(fields["conference"] == stays for fields in logged(child, "call seen")))
                behind = "Kafka takes no records; the mirror goes on, and all is announced when it is back"
                await until(lambda: logged(child, behind))
                await kafka.start()
                await parked(settings, stays)
                records = await said(settings, ends, has("caller-left"))
                assert isinstance(records[-1], CallerLeft)
                assert records[-1].reason is LeftReason.HANGUP
                assert len(logged(child, behind)) == 1
            assert child.running


async def test_live_calls_are_renewed(kafka_settings: KafkaSettings, gateway: asterisk.Gateway, tmp_path: Path) -> None:
    conference = conference_number()
    child = agent(kafka_settings, gateway.ami, tmp_path / "log", GATEWAY_RENEW_SECONDS="0.3")
    async with running(child), caller(gateway, tmp_path, conference):
        await said(kafka_settings, conference, lambda found: types(found).count("call-alive") >= 3)


async def test_star_leads_back_to_the_question_and_the_agent_says_that_it_is_there(
    kafka_settings: KafkaSettings, gateway: asterisk.Gateway, tmp_path: Path
) -> None:
    wrong, right = conference_number(), conference_number()
    # Other keys do nothing while one waits; what stands before the last * while one is asked is forgotten.
    calls = [sipp.Call(NUMBER, f"{wrong}#0123456789*0*{right}#")]
    # Both hear each key; only who speaks for the gateway may move the caller.
    agents = [agent(kafka_settings, gateway.ami, tmp_path / name) for name in ("one", "other")]
    async with running(agents[0]), running(agents[1]), sipp.node(tmp_path) as node:
        async with sipp.calling(tmp_path / "callers", (gateway.sip_host, gateway.sip_port), calls):
            records = await said(kafka_settings, wrong, has("caller-left"), timeout=40)
            assert types(records) == ["caller-parked", "caller-left"]
            assert isinstance(records[1], CallerLeft)
            assert records[1].reason is LeftReason.NEW_NUMBER
            call = await parked(kafka_settings, right)
            assert call.stay == 2
            await instruct(kafka_settings, dial(call, node.uri(right)))
            await said(kafka_settings, right, has("caller-connected"))
        present = re.search(r"CALLYARD_AGENT=([0-9]+)", await gateway.cli("dialplan show globals"))
        assert present is not None
        assert abs(int(present[1]) - time.time()) < 30
        asked = [line for child in agents for line in logged(child, "asking for another number")]
        assert len(asked) == 1
