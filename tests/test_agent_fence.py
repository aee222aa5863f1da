"""An agent that cannot know whether it still speaks for its gateway says nothing and redirects nobody."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agents.calls import Call, Phase
from agents.mirror import Mirror
from agents.publish import Publisher
from callyard import clients
from callyard.broker_clock import BrokerClock
from callyard.fence import Fence, boottime
from callyard.kafka import embedded
from callyard.parts import asterisk, sipp
from callyard.records import CALLS, CallAlive, CallerParked, CallRecord, CallState, LeftReason, parse
from callyard.settings import KafkaSettings
from callyard.topics import topics
from tests.conftest import unique_settings
from tests.support import kafka as on_kafka
from tests.support.agent import agent, dial, has, logged, running, said, types
from tests.support.asterisk import conference_number
from tests.support.proxy import ami_proxy
from tests.support.wait import until

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]

CONFERENCE = "49123"
NUMBER = "+4930123456"
NOT_KNOWN = "member_id was not recognized"


@pytest.mark.asterisk
async def test_an_owner_frozen_longer_than_its_session_redirects_nobody_and_says_nothing_when_it_wakes(
    kafka_settings: KafkaSettings, gateway: asterisk.Gateway, tmp_path: Path
) -> None:
    conference = conference_number()
    dials = topics(kafka_settings).dials.name
    async with (
        ami_proxy(gateway.ami) as proxy,
        sipp.node(tmp_path) as node,
        clients.producer(kafka_settings, "stream") as stream,
    ):
        # It renews each second: at once when it wakes, with what was true before.
        frozen = agent(kafka_settings, proxy.settings, tmp_path / "frozen", GATEWAY_RENEW_SECONDS="1")
        other = agent(kafka_settings, gateway.ami, tmp_path / "other")
        calls = [sipp.Call(NUMBER, f"{conference}#")]
        async with (
            running(frozen, other),
            sipp.calling(tmp_path, (gateway.sip_host, gateway.sip_port), calls) as caller,
        ):
            assert (await frozen.ready(1))["role"] == "owner"
            [call, *_] = await said(kafka_settings, conference, has("caller-parked", "call-alive"))
            joined = len(logged(frozen, "group joined"))
            frozen.send_signal(signal.SIGSTOP)
            try:
                # It hears nothing of what becomes of the caller, and finds the instruction in its socket.
                proxy.hold()
                wanted = dial(call, node.uri(conference))
                await on_kafka.send_one(stream, dials, wanted.gateway_id, wanted)
                await said(kafka_settings, conference, has("caller-connected"), timeout=40)
            finally:
                frozen.send_signal(signal.SIGCONT)
            await frozen.line(lambda line: NOT_KNOWN in line, 20, "told that it was taken for dead")
            assert proxy.changes == []
            proxy.release()
            await until(lambda: len(logged(frozen, "group joined")) == joined + 1, what="it is a member again")
            # To it the caller is still parked, so whatever it sent after the freeze would say so.
            assert waiting_again(await told(kafka_settings, conference)) == []
            assert [event.what for event in node.events()] == ["called", "answered"]
            assert len(caller.talking()) == 1
            assert frozen.running


def waiting_again(records: list[CallRecord]) -> list[CallRecord]:
    """The records after the caller was connected that say otherwise."""
    after = records[types(records).index("caller-connected") :]
    return [
        record
        for record in after
        if isinstance(record, CallerParked) or (isinstance(record, CallAlive) and record.state is CallState.PARKED)
    ]


async def told(settings: KafkaSettings, conference: str = CONFERENCE) -> list[CallRecord]:
    """All that has been said of a conference's callers until now."""
    records = [parse(CALLS, record.value) for record in await on_kafka.read(settings, topics(settings).calls.name)]
    return [record for record in records if record.conference == conference]


def mirror_of(*uniqueids: str) -> Mirror:
    """A mirror of parked calls."""
    made = Mirror("gw-1")
    for uniqueid in uniqueids:
        made.calls[uniqueid] = Call(uniqueid, f"PJSIP/x-{uniqueid}", CONFERENCE, 1, 0, Phase.PARKED)
    return made


@asynccontextmanager
async def publishing(settings: KafkaSettings, mirror: Mirror, fence: Fence) -> AsyncIterator[Publisher]:
    publisher = Publisher(settings, topics(settings), mirror, fence, BrokerClock(), client_id="test")
    work = asyncio.create_task(publisher.run())
    try:
        yield publisher
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


async def test_nothing_is_said_until_a_heartbeat_is_confirmed_and_then_everything(
    kafka_settings: KafkaSettings,
) -> None:
    fence, mirror = Fence(session_seconds=6), mirror_of("1.0")
    async with publishing(kafka_settings, mirror, fence) as publisher:
        publisher.speak()
        await until(lambda: publisher._held_back, what="it waits at the fence")
        assert await told(kafka_settings) == []
        fence.confirm(boottime())
        await asyncio.wait_for(publisher.announced.wait(), 10)
        fence._confirmed -= 60  # as after a minute of being frozen
        publisher.say([mirror.reports.left(mirror.calls.pop("1.0"), LeftReason.HANGUP)])
        await until(lambda: publisher._held_back, what="it waits at the fence")
        assert types(await told(kafka_settings)) == ["caller-parked"]
        fence.confirm(boottime())
        await said(kafka_settings, CONFERENCE, has("caller-left"))


async def test_what_the_producer_still_holds_is_not_written_once_another_speaks(tmp_path: Path) -> None:
    async with embedded.running(tmp_path / "kafka") as kafka:
        settings = unique_settings(kafka).model_copy(update={"request_timeout_ms": 1_000})
        await on_kafka.create_topics(settings)
        fence, mirror = Fence(session_seconds=3600), mirror_of("1.0")
        fence.confirm(boottime())
        async with publishing(settings, mirror, fence) as publisher:
            publisher.speak()
            await asyncio.wait_for(publisher.announced.wait(), 10)
            await kafka.kill()
            publisher.announce()
            await until(lambda: publisher._under_way, what="a record in the producer")
            publisher.mute()
            await kafka.start()
            # A new producer is there, so the one that held the record has ended.
            await until(lambda: not publisher._under_way, what="the next producer")
            assert types(await told(settings)) == ["caller-parked"]
            publisher.speak()
            await asyncio.wait_for(publisher.announced.wait(), 20)
            assert types(await told(settings)) == ["caller-parked"] * 2
