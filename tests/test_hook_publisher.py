"""What waits while Kafka is away is the newest state of each instance; shown first by an outlet that a test holds back,
then with a real broker that stands still.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from aiokafka.errors import KafkaConnectionError, KafkaError, MessageSizeTooLargeError

from callyard.errors import CommandError
from callyard.kafka import embedded
from callyard.parts.freeswitch import FreeSwitch
from callyard.records import RegistrationRecord, Sent, UnregisterReason
from callyard.settings import KafkaSettings, NodeSettings
from fs_hooks.conferences import Conference, Ended, Opened
from fs_hooks.publisher import MOST_IN_FLIGHT, Publisher
from tests.support import kafka as kafka_support
from tests.support.hook import events, hook, registrations, running, words
from tests.support.wait import until

NODE = NodeSettings(id="node-1", sip_uri="sip:{conference}@192.0.2.7")


class HeldOutlet:
    """Takes records; their delivery is up to the test."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, asyncio.Future[object]]] = []

    async def begin(self, record: Sent, conference: str) -> asyncio.Future[object]:
        assert isinstance(record, RegistrationRecord)
        assert record.conference == conference
        delivery: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self.taken.append((words(record), delivery))
        return delivery

    def deliver(self, error: KafkaError | None = None) -> None:
        """End the oldest delivery that is still open."""
        delivery = next(delivery for _, delivery in self.taken if not delivery.done())
        if error is None:
            delivery.set_result(None)
        else:
            delivery.set_exception(error)

    @property
    def said(self) -> list[str]:
        return [text for text, _ in self.taken]


@pytest_asyncio.fixture
async def outlet() -> HeldOutlet:
    return HeldOutlet()


@pytest_asyncio.fixture
async def publisher(outlet: HeldOutlet) -> AsyncIterator[Publisher]:
    made = Publisher(outlet, NODE)
    task = asyncio.create_task(made.run())
    yield made
    task.cancel()
    await asyncio.wait({task})


def opened(instance: str, number: str = "49123") -> Opened:
    return Opened(Conference(number, instance))


def ended(instance: str, number: str = "49123") -> Ended:
    return Ended(Conference(number, instance), UnregisterReason.ENDED)


async def test_a_burst_is_handed_over_before_the_first_delivery(publisher: Publisher, outlet: HeldOutlet) -> None:
    for number in range(40):
        publisher.offer(opened(f"i{number}", str(50000 + number)), time.monotonic())
    await until(lambda: len(outlet.taken) == 40)
    assert outlet.said == [f"+ {50000 + number} i{number}" for number in range(40)]


async def test_an_instance_has_one_record_in_flight_and_its_newest_state_follows(
    publisher: Publisher, outlet: HeldOutlet
) -> None:
    publisher.offer(opened("a"), time.monotonic())
    await until(lambda: len(outlet.taken) == 1)
    for _ in range(1000):
        publisher.offer(ended("a"), time.monotonic())
        publisher.offer(opened("a"), time.monotonic())
    publisher.offer(ended("a"), time.monotonic())
    publisher.offer(opened("b"), time.monotonic())
    await until(lambda: len(outlet.taken) == 2)
    outlet.deliver()
    await until(lambda: len(outlet.taken) == 3)
    assert outlet.said == ["+ 49123 a", "+ 49123 b", "- 49123 a ended"]
    outlet.deliver()
    outlet.deliver()
    await asyncio.wait_for(publisher.settled(), 5)


async def test_what_kafka_was_never_told_of_is_not_unregistered(publisher: Publisher, outlet: HeldOutlet) -> None:
    publisher.offer(opened("a"), time.monotonic())
    publisher.offer(ended("a"), time.monotonic())
    publisher.offer(opened("b"), time.monotonic())
    await until(lambda: outlet.taken)
    assert outlet.said == ["+ 49123 b"]


async def test_a_renewal_says_nothing_while_something_is_on_its_way(publisher: Publisher, outlet: HeldOutlet) -> None:
    publisher.offer(opened("a"), time.monotonic())
    await until(lambda: outlet.taken)
    publisher.renew(opened("a").conference)
    outlet.deliver()
    await asyncio.wait_for(publisher.settled(), 5)
    publisher.renew(opened("a").conference)
    await until(lambda: len(outlet.taken) == 2)
    assert outlet.said == ["+ 49123 a"] * 2


async def test_a_failed_delivery_is_repeated_unless_something_newer_came(
    publisher: Publisher, outlet: HeldOutlet
) -> None:
    for instance in ("a", "b"):
        publisher.offer(opened(instance), time.monotonic())
    await until(lambda: len(outlet.taken) == 2)
    publisher.offer(ended("a"), time.monotonic())
    outlet.deliver(KafkaConnectionError("away"))
    outlet.deliver(KafkaConnectionError("away"))
    await until(lambda: len(outlet.taken) == 4)
    assert sorted(outlet.said[2:]) == ["+ 49123 b", "- 49123 a ended"]


async def test_however_many_come_and_go_while_kafka_is_away_what_waits_is_bounded(
    publisher: Publisher, outlet: HeldOutlet
) -> None:
    for number in range(5 * MOST_IN_FLIGHT):
        publisher.offer(opened(f"i{number}", str(10000 + number)), time.monotonic())
        if number % 100 == 0:
            await asyncio.sleep(0)
    await until(lambda: len(outlet.taken) == MOST_IN_FLIGHT)
    for number in range(5 * MOST_IN_FLIGHT):
        publisher.offer(ended(f"i{number}", str(10000 + number)), time.monotonic())
    assert publisher._count() == MOST_IN_FLIGHT, "only of what Kafka may know there is still something to say"
    while len(outlet.taken) < 2 * MOST_IN_FLIGHT:
        outlet.deliver()
        await asyncio.sleep(0)
    assert outlet.said[MOST_IN_FLIGHT:] == [f"- {10000 + n} i{n} ended" for n in range(MOST_IN_FLIGHT)]


async def test_what_is_beyond_the_bound_follows_when_there_is_room_and_at_the_end(outlet: HeldOutlet) -> None:
    publisher = Publisher(outlet, NODE)
    running = asyncio.create_task(publisher.run())
    for number in range(MOST_IN_FLIGHT + 2):
        publisher.offer(opened(f"i{number}", str(10000 + number)), time.monotonic())
    await until(lambda: len(outlet.taken) == MOST_IN_FLIGHT)
    outlet.deliver()
    await until(lambda: len(outlet.taken) == MOST_IN_FLIGHT + 1)
    running.cancel()
    await asyncio.wait({running})
    draining = asyncio.create_task(publisher.drain(20))
    while not draining.done():
        if any(not delivery.done() for _, delivery in outlet.taken):
            outlet.deliver()
        await asyncio.sleep(0)
    assert len(outlet.taken) == MOST_IN_FLIGHT + 2


async def test_it_ends_even_as_a_delivery_does(outlet: HeldOutlet) -> None:
    """A cancellation must not be lost in the moment in which something else wakes it."""
    publisher = Publisher(outlet, NODE)
    running = asyncio.create_task(publisher.run())
    publisher.offer(opened("a"), time.monotonic())
    await until(lambda: outlet.taken)
    outlet.deliver()
    await asyncio.wait_for(publisher.settled(), 5)
    running.cancel()
    await asyncio.wait({running}, timeout=5)
    assert running.cancelled()


async def test_a_refusal_for_good_ends_the_publisher(outlet: HeldOutlet) -> None:
    publisher = Publisher(outlet, NODE)
    running = asyncio.create_task(publisher.run())
    publisher.offer(opened("a"), time.monotonic())
    await until(lambda: outlet.taken)
    outlet.deliver(MessageSizeTooLargeError())
    with pytest.raises(CommandError, match="MessageSizeTooLarge"):
        await asyncio.wait_for(running, 5)


@pytest.mark.kafka
async def test_kafka_stands_still_for_a_while(tmp_path: Path) -> None:
    async with embedded.running(tmp_path / "kafka") as kafka, FreeSwitch() as freeswitch:
        settings = KafkaSettings(
            bootstrap_servers=kafka.bootstrap_servers, topic_prefix="still", partitions=3, request_timeout_ms=2000
        )
        await kafka_support.create_topics(settings)
        child = hook(settings, freeswitch.port, tmp_path / "log", KAFKA_REQUEST_TIMEOUT_MS="2000")
        async with running(child):
            before = freeswitch.open("41111").instance
            await registrations(settings, 1)
            os.kill(kafka.pid, signal.SIGSTOP)
            try:
                # Longer than requests may take, so that they fail and are repeated; FreeSWITCH is followed on.
                meanwhile = freeswitch.open("42222").instance
                freeswitch.close(before)
                passing = [freeswitch.open(str(50000 + number)).instance for number in range(50)]
                await until(lambda: events(child, STALLED))
                for instance in passing:
                    freeswitch.close(instance)
                last = freeswitch.open("43333").instance
                stalled_at = time.monotonic()
                await until(lambda: time.monotonic() - stalled_at > 5)
            finally:
                os.kill(kafka.pid, signal.SIGCONT)
            found = await registrations(settings, lambda seen: _live(seen) == {meanwhile, last}, timeout=40)
            await until(lambda: events(child, "Kafka takes records again"))
            assert len(events(child, STALLED)) == 1, "said once"
            assert len(events(child, "Kafka takes records again")) == 1, "and once when it is over"
        told = [words(record) for record in found]
        assert f"- 41111 {before} ended" in told


@pytest.mark.kafka
async def test_the_hook_ends_while_kafka_stands_still(tmp_path: Path) -> None:
    async with embedded.running(tmp_path / "kafka") as kafka, FreeSwitch() as freeswitch:
        settings = KafkaSettings(bootstrap_servers=kafka.bootstrap_servers, topic_prefix="still", partitions=3)
        await kafka_support.create_topics(settings)
        async with running(hook(settings, freeswitch.port, tmp_path / "log")) as child:
            os.kill(kafka.pid, signal.SIGSTOP)
            try:
                freeswitch.open("42222")
                await until(lambda: events(child, STALLED))
                child.send_signal(signal.SIGTERM)
                assert await asyncio.wait_for(child.wait(), 10) == 0
            finally:
                os.kill(kafka.pid, signal.SIGCONT)


STALLED = "Kafka takes no records: registrations wait, FreeSWITCH is still followed"


def _live(seen: list[RegistrationRecord]) -> set[str]:
    live: set[str] = set()
    for record in seen:
        (live.add if record.type == "conference-registered" else live.discard)(record.instance_id)
    return live
