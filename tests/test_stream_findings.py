"""What Faust was found to do, and what the worker does about it: one test each on the real broker.

The list of all findings, with the test that shows each, is in docs/architecture.md, "Faust, guarded".
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from callyard import clients
from callyard.processes import Child
from callyard.records import Record
from callyard.settings import KafkaSettings, PolicySettings, StreamSettings, load
from callyard.topics import topics
from streams.rows import split_key
from streams.worker import Worker
from tests.support import kafka as on_kafka
from tests.support.events import parked, registered
from tests.support.patched_stream import patched_worker
from tests.support.streams import check_journal, follower, stream_worker
from tests.support.wait import until

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]

ENDED_BY_ITSELF = 70


async def send_callers(settings: KafkaSettings, name: str, count: int) -> int:
    """So many callers over some conferences; returns how many records that were."""
    calls: list[tuple[str, Record]] = []
    for number in range(count):
        conference = str(49000 + number % 40)
        calls.append((conference, parked(f"{name}-{number}", conference=conference)))
    async with clients.producer(settings, "load") as producer:
        for deliveries in [
            await producer.send(topics(settings).calls.name, record.encode(), key=key.encode()) for key, record in calls
        ]:
            await deliveries
    return count


async def all_decided(settings: KafkaSettings, inputs: int) -> None:
    """Wait until so many inputs were decided, and check what the journal says of them."""
    async with follower(settings) as journal:
        await until(lambda: journal.decided(inputs), 60, lambda: f"{journal} of {inputs}")


async def test_source_records_that_could_flow_before_the_seek_are_not_lost(
    kafka_settings: KafkaSettings, tmp_path: Path
) -> None:
    # Two answers stand against it: the flow is stopped, and the seek goes to what was applied. Without both it fails.
    inputs = await send_callers(kafka_settings, "a", 1000)
    for number in range(2):
        worker = patched_worker(kafka_settings, tmp_path / f"{number}.log", "slow-seek:0.2")
        worker.start()
        await all_decided(kafka_settings, inputs)
        # A backlog for the next one: it flows while that one has not sought yet.
        await worker.kill()
        inputs += await send_callers(kafka_settings, f"b{number}", 1000)
    worker = patched_worker(kafka_settings, tmp_path / "last.log", "slow-seek:0.2")
    worker.start()
    try:
        await all_decided(kafka_settings, inputs)
        assert worker.running, worker.tail()
    finally:
        await worker.stop()
    await check_journal(kafka_settings, inputs)


async def test_an_exception_in_the_agent_ends_the_process_and_loses_nothing(
    kafka_settings: KafkaSettings, tmp_path: Path
) -> None:
    inputs = await send_callers(kafka_settings, "a", 20)
    # At the last one, after which nothing comes that would show the gap.
    worker = patched_worker(kafka_settings, tmp_path / "raising.log", f"raise:{inputs}")
    worker.start()
    assert await asyncio.wait_for(worker.wait(), 60) == ENDED_BY_ITSELF
    assert "raised by the test" in worker.tail(100)
    await finished_by_another(kafka_settings, tmp_path, inputs)


async def finished_by_another(settings: KafkaSettings, tmp_path: Path, inputs: int) -> None:
    worker = stream_worker(settings, tmp_path / "next.log")
    worker.start()
    try:
        await worker.ready(60)  # what was left unsaid is said by then
        await all_decided(settings, inputs)
    finally:
        await worker.stop()
    await check_journal(settings, inputs)


async def test_an_output_that_the_broker_rejects_ends_the_process_and_is_said_by_the_next(
    kafka_settings: KafkaSettings, tmp_path: Path
) -> None:
    names = topics(kafka_settings)
    worker = stream_worker(kafka_settings, tmp_path / "first.log")
    worker.start()
    try:
        await worker.ready(60)
        await largest_message(kafka_settings, names.dials.name, 100)
        await on_kafka.send(kafka_settings, names.calls.name, ("49123", parked()))
        await on_kafka.send(kafka_settings, names.registrations.name, ("49123", registered()))
        assert await asyncio.wait_for(worker.wait(), 60) == ENDED_BY_ITSELF
    finally:
        await worker.stop()
    assert "MessageSizeTooLarge" in worker.tail(100)
    await largest_message(kafka_settings, names.dials.name, 1_000_000)
    await finished_by_another(kafka_settings, tmp_path, 2)


async def largest_message(settings: KafkaSettings, topic: str, size: int) -> None:
    """Let the broker take no larger batches of this topic."""
    async with clients.admin(settings) as admin:
        # All that isn't named goes back to its default; the check at a worker's start asks for these.
        [dials] = [one for one in topics(settings).all if one.name == topic]
        configs = {**dials.config, "max.message.bytes": str(size)}
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs)])


async def test_each_row_lies_in_its_own_partition_and_the_worker_listens_nowhere(
    kafka_settings: KafkaSettings, tmp_path: Path
) -> None:
    worker = stream_worker(kafka_settings, tmp_path / "stream.log")
    worker.start()
    try:
        await worker.ready(60)
        await all_decided(kafka_settings, await send_callers(kafka_settings, "a", 100))
        assert listening(worker) == set()
    finally:
        await worker.stop()
    rows = await on_kafka.read(kafka_settings, topics(kafka_settings).changelog.name)
    assert {row.partition for row in rows} == set(range(kafka_settings.partitions))
    assert [row for row in rows if split_key(row.key)[0] != row.partition] == []


def listening(child: Child) -> set[str]:
    """The TCP addresses (as /proc has them) that a process listens on."""
    links = [str(link.readlink()) for link in Path(f"/proc/{child.pid}/fd").iterdir()]
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{child.pid}/net/{table}").read_text(encoding="ascii").splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in links:
                found.add(local)
    return found


async def test_faust_is_set_as_the_findings_ask() -> None:
    settings = load(KafkaSettings, StreamSettings, PolicySettings, environment={})
    app = Worker(settings).app
    conf = app.conf
    assert [agent.concurrency for agent in app.agents.values()] == [1], "two commit past an unfinished event"
    assert conf.processing_guarantee.value == "at_least_once", "exactly_once crashes a second worker"
    assert not conf.stream_wait_empty, "waiting would hang a rebalance"
    assert not conf.web_enabled, "it would listen on all addresses"
    assert not conf.topic_allow_declare, "a missing topic would be made with whatever partitions"
    assert str(conf.store) == "memory:", "another store keeps positions of its own"
    assert conf.broker_request_timeout <= 15, "Faust's own 90 s are far longer than a session"


async def test_fetches_wait_no_longer_than_an_input_may(kafka_settings: KafkaSettings) -> None:
    app = Worker(
        load(KafkaSettings, StreamSettings, PolicySettings, environment=on_kafka.environment(kafka_settings))
    ).app
    consumer = app.consumer._thread._create_worker_consumer(app.transport)
    try:
        await consumer.start()
        assert consumer._fetcher._fetch_max_wait_ms == 50, "Faust hard-codes 1500"
    finally:
        await consumer.stop()
