"""The stream worker on the real Kafka: decides, survives kills, shares partitions, refuses what it must."""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient

from callyard import clients
from callyard.fence import Fence, FencedError, boottime, fence_producer
from callyard.kafka import embedded
from callyard.processes import Child, free_port
from callyard.settings import KafkaSettings
from callyard.topics import topics
from streams.claims import Claims, claim_of
from tests.conftest import unique_settings
from tests.support import hostile
from tests.support import kafka as on_kafka
from tests.support.events import parked, registered
from tests.support.patched_stream import patched_worker
from tests.support.stream_load import Load, all_decided
from tests.support.streams import check_journal, decisions, instructions, journal, stream_worker
from tests.support.wait import until

pytestmark = pytest.mark.kafka


@asynccontextmanager
async def running(*workers: Child) -> AsyncIterator[None]:
    """Workers that are ready; ended afterwards, whatever happens."""
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            await worker.ready(60)
        yield
    finally:
        for worker in workers:
            await worker.stop()


async def test_a_parked_caller_is_dialled_when_the_conference_registers(
    kafka_settings: KafkaSettings, tmp_path: Path
) -> None:
    names = topics(kafka_settings)
    worker = stream_worker(kafka_settings, tmp_path / "stream.log")
    async with running(worker):
        await on_kafka.send(kafka_settings, names.calls.name, ("49123", parked()))
        await on_kafka.send(kafka_settings, names.registrations.name, ("49123", registered()))
        [instruction] = await instructions(kafka_settings, 1)
    assert instruction.instruction_id == "gw-1/1#1.1"
    assert instruction.sip_uri == "sip:49123@192.0.2.1:5060;transport=tcp"
    assert worker.exit_status == 0, "SIGTERM is an orderly end"
    # Between two topics there is no order; either way one decision sees both.
    assert sorted(entry.outcome for entry in decisions(await journal(kafka_settings))) == ["parked", "registered"]


async def test_what_was_written_before_any_worker_ran_is_decided(kafka_settings: KafkaSettings, tmp_path: Path) -> None:
    names = topics(kafka_settings)
    await on_kafka.send(kafka_settings, names.registrations.name, ("49123", registered()))
    await on_kafka.send(kafka_settings, names.calls.name, ("49123", parked()))
    async with running(stream_worker(kafka_settings, tmp_path / "stream.log")):
        [instruction] = await instructions(kafka_settings, 1)
    assert instruction.call_id == "gw-1/1"


async def test_a_retry_comes_due_by_itself(kafka_settings: KafkaSettings, tmp_path: Path) -> None:
    names = topics(kafka_settings)
    worker = stream_worker(
        kafka_settings, tmp_path / "stream.log", POLICY_INSTRUCTION_DEADLINE_SECONDS="1", STREAM_TICK_SECONDS="0.05"
    )
    async with running(worker):
        await on_kafka.send(kafka_settings, names.calls.name, ("49123", parked()))
        await on_kafka.send(kafka_settings, names.registrations.name, ("49123", registered()))
        issued = await instructions(kafka_settings, 3)
    assert [i.attempt for i in issued[:3]] == [1, 2, 3]
    gaps = [b.issued_at_ms - a.issued_at_ms for a, b in itertools.pairwise(issued)]
    assert all(1000 <= gap < 3000 for gap in gaps), gaps


async def test_rubbish_on_the_inputs_is_set_aside_and_nothing_stops(
    kafka_settings: KafkaSettings, tmp_path: Path
) -> None:
    names = topics(kafka_settings)
    newer = parked().encode().replace(b'"schema_version":1', b'"schema_version":2')
    async with running(stream_worker(kafka_settings, tmp_path / "stream.log")):
        for topic in (names.registrations, names.calls, names.timers):
            await on_kafka.send(
                kafka_settings,
                topic.name,
                ("49123", b"\xff\xfenonsense"),
                ("49123", b"{}"),
                (None, b"[1]"),
                ("x", newer),
            )
        await on_kafka.send(kafka_settings, names.calls.name, ("49123", parked()))
        await on_kafka.send(kafka_settings, names.registrations.name, ("49123", registered()))
        assert len(await instructions(kafka_settings, 1)) == 1
        rejected = await on_kafka.read(kafka_settings, names.rejected.name, enough=12)
    reasons = [dict(record.headers)["callyard-reason"].decode() for record in rejected]
    assert sum("not JSON" in reason for reason in reasons) == 3
    assert sum("upgrade this program" in reason for reason in reasons) == 3
    assert sum(record.value == b"\xff\xfenonsense" for record in rejected) == 3, "as they came"


@pytest.mark.timeout(120)
async def test_hostile_records_on_the_inputs_are_decided_or_set_aside(
    kafka_settings: KafkaSettings, tmp_path: Path
) -> None:
    names = topics(kafka_settings)
    worker = stream_worker(kafka_settings, tmp_path / "stream.log")
    async with running(worker):
        for topic, name in (("registrations", names.registrations), ("calls", names.calls), ("timers", names.timers)):
            # Megabytes once, not for each field: what is tried here is the worker, not the disk.
            short = [value for _, value in hostile.spoiled_records(topic) if len(value) < hostile.MEGABYTE // 2]
            rubbish: list[tuple[bytes | None, bytes]] = [(b"49123", value) for value in [*short, b'"' * 900_000]]
            rubbish += [(key, b"{}") for key in hostile.BYTES.values() if len(key) < hostile.MEGABYTE // 2]
            await on_kafka.send(kafka_settings, name.name, *rubbish)
        await on_kafka.send(kafka_settings, names.calls.name, ("40001", parked("good", conference="40001")))
        await on_kafka.send(kafka_settings, names.registrations.name, ("40001", registered(conference="40001")))
        await on_kafka.read(
            kafka_settings, names.dials.name, enough=lambda found: any(b'"gw-1/good"' in r.value for r in found),
            timeout=60,
        )  # fmt: skip
        assert await until(
            lambda: _all_accounted_for(kafka_settings), timeout=60, what="each input decided or set aside"
        )
        assert worker.running


async def _all_accounted_for(settings: KafkaSettings) -> bool:
    """Whether each record on the inputs is a decision in the journal or set aside; fails where one is both."""
    names = topics(settings)
    inputs = [topic.name for topic in names.inputs]
    there = {(r.topic, r.partition, r.offset) for r in await on_kafka.read(settings, *inputs)}
    decided = {(e.position.topic, e.position.partition, e.position.offset) for e in decisions(await journal(settings))}
    aside = set()
    for record in await on_kafka.read(settings, names.rejected.name):
        at, _, offset = dict(record.headers)["callyard-position"].decode().partition("@")
        topic, _, partition = at.rpartition("-")
        aside.add((topic, int(partition), int(offset)))
    assert not decided & aside
    return len(aside) > 100 and there <= decided | aside


async def test_so_much_rubbish_that_it_fills_groups_stops_nothing(
    kafka_settings: KafkaSettings, tmp_path: Path
) -> None:
    names = topics(kafka_settings)
    big, long_key = b"\0" * 300_000, b"k" * 400_000
    rubbish = [("49123", b'"' * 2600)] * 1500 + [("49123", big)] * 9 + [(long_key, b"v" * 400_000)]
    await on_kafka.send(kafka_settings, names.calls.name, *rubbish)
    await on_kafka.send(kafka_settings, names.calls.name, ("49123", parked()))
    await on_kafka.send(kafka_settings, names.registrations.name, ("49123", registered()))
    async with running(stream_worker(kafka_settings, tmp_path / "stream.log")):
        assert len(await instructions(kafka_settings, 1)) == 1
        rejected = await on_kafka.read(kafka_settings, names.rejected.name, enough=len(rubbish), timeout=60)
    assert len(rejected) == len(rubbish)


async def test_a_transaction_on_an_input_is_no_gap_for_ever(kafka_settings: KafkaSettings, tmp_path: Path) -> None:
    names = topics(kafka_settings)
    worker = stream_worker(kafka_settings, tmp_path / "stream.log")
    async with running(worker):
        async with (
            clients.producer(kafka_settings, "foreign", transactional_id="foreign") as producer,
            producer.transaction(),  # its marker takes an offset after the record
        ):
            await on_kafka.send_one(producer, names.calls.name, "49123", parked("1"))
        async with on_kafka.reader(kafka_settings, names.calls.name) as consumer:
            await until(lambda: _ends(consumer, 2), what="the transaction's marker written")
        await on_kafka.send(kafka_settings, names.calls.name, ("49123", parked("2")))
        await on_kafka.send(kafka_settings, names.registrations.name, ("49123", registered()))
        await until(
            lambda: not worker.running, what="the worker ends at the hole, rather than skip what might be there"
        )
        worker.start()
        await worker.ready(60)
        issued = await instructions(kafka_settings, 2)
    assert {i.call_id for i in issued} == {"gw-1/1", "gw-1/2"}


async def _ends(consumer: AIOKafkaConsumer, offsets: int) -> bool:
    return sum((await consumer.end_offsets(list(consumer.assignment()))).values()) >= offsets


async def test_an_input_that_was_deleted_and_made_anew_is_read(kafka_settings: KafkaSettings, tmp_path: Path) -> None:
    names = topics(kafka_settings)
    first = stream_worker(kafka_settings, tmp_path / "first.log")
    async with running(first):
        await on_kafka.send(kafka_settings, names.registrations.name, ("49123", registered()))
        await on_kafka.send(kafka_settings, names.calls.name, *[("49123", parked(str(n))) for n in range(5)])
        assert len(await instructions(kafka_settings, 5)) == 5
    async with clients.admin(kafka_settings) as admin:
        await admin.delete_topics([names.calls.name])
        await until(lambda: _is_gone(admin, names.calls.name), what="the topic deleted")
    await on_kafka.create_topics(kafka_settings)
    await on_kafka.send(kafka_settings, names.calls.name, ("49123", parked("new")))
    second = stream_worker(kafka_settings, tmp_path / "second.log")
    async with running(second):
        await on_kafka.read(
            kafka_settings, names.dials.name, enough=lambda found: any(b'"gw-1/new"' in r.value for r in found)
        )
        assert any("shorter than what was decided" in line for line in second.lines())


async def _is_gone(admin: AIOKafkaAdminClient, topic: str) -> bool:
    return topic not in await admin.list_topics()


async def test_a_producer_that_the_fence_does_not_vouch_for_writes_nothing(kafka_settings: KafkaSettings) -> None:
    topic = topics(kafka_settings).dials.name
    fence = Fence(session_seconds=6)
    async with clients.producer(kafka_settings, "fenced") as producer:
        fence_producer(producer, fence.check)
        fence.confirm(boottime())
        await producer.send_and_wait(topic, b"while it holds")
        fence.confirm(boottime())
        fence._confirmed -= 60  # as after a minute without a heartbeat
        delivery = await producer.send(topic, b"when it no longer holds")
        with pytest.raises(FencedError):
            await delivery
    assert [record.value for record in await on_kafka.read(kafka_settings, topic)] == [b"while it holds"]


async def test_missing_topics_and_wrong_partitions_are_named_before_the_worker_starts(
    kafka: embedded.EmbeddedKafka, tmp_path: Path
) -> None:
    settings = unique_settings(kafka)
    missing = stream_worker(settings, tmp_path / "missing.log")
    missing.start()
    assert await asyncio.wait_for(missing.wait(), 60) == 1
    assert "is missing: run 'callyard topics'" in missing.tail()
    await on_kafka.create_topics(settings)
    wrong = stream_worker(settings, tmp_path / "wrong.log", KAFKA_PARTITIONS="5")
    wrong.start()
    assert await asyncio.wait_for(wrong.wait(), 60) == 1
    assert "has 3 partitions, CALLYARD_KAFKA_PARTITIONS says 5" in wrong.tail(40)


async def test_no_kafka_is_said_in_words(tmp_path: Path) -> None:
    nowhere = KafkaSettings(bootstrap_servers=f"127.0.0.1:{free_port()}")
    worker = stream_worker(nowhere, tmp_path / "stream.log")
    worker.start()
    assert await asyncio.wait_for(worker.wait(), 60) == 1
    assert f"no Kafka answers at {nowhere.bootstrap_servers}" in worker.tail()


@pytest.mark.timeout(300)
async def test_kills_and_rebalances_lose_nothing_and_double_nothing(
    kafka_settings: KafkaSettings, tmp_path: Path
) -> None:
    first = stream_worker(kafka_settings, tmp_path / "first.log")
    second = stream_worker(kafka_settings, tmp_path / "second.log")
    load = Load(kafka_settings)
    async with running(first):
        feeding = asyncio.create_task(load.run())
        for number in range(3):
            await until(lambda enough=load.sent + 150: load.sent >= enough)
            await first.kill()
            first.start()
            if number == 1:
                second.start()  # joins while the first recovers
            await first.ready(60)
        await second.ready(60)
        await until(lambda enough=load.sent + 150: load.sent >= enough)
        assert await second.stop() == 0  # leaves in order
        await until(lambda enough=load.sent + 150: load.sent >= enough)
        load.stop()
        await feeding
        await all_decided(kafka_settings, load)
    entries = await check_journal(kafka_settings, load.sent)
    # Callers and conferences are in two topics: in a backlog a caller may be read as connected before it is dialled.
    assert len({i.call_id for e in entries for i in e.instructions}) > len(load.callers) / 2


@pytest.mark.timeout(120)
async def test_a_worker_frozen_longer_than_its_session_says_nothing_when_it_wakes(
    kafka_settings: KafkaSettings, tmp_path: Path
) -> None:
    first = stream_worker(kafka_settings, tmp_path / "first.log", STREAM_SESSION_SECONDS="6")
    second = stream_worker(kafka_settings, tmp_path / "second.log", STREAM_SESSION_SECONDS="6")
    load = Load(kafka_settings, seed=2)
    try:
        async with running(first):
            feeding = asyncio.create_task(load.run())
            await until(lambda: load.sent >= 200)
            first.send_signal(signal.SIGSTOP)
            second.start()
            await second.ready(60)  # the group gave it the frozen worker's partitions
            await until(lambda enough=load.sent + 200: load.sent >= enough)
            first.send_signal(signal.SIGCONT)
            await until(lambda enough=load.sent + 200: load.sent >= enough)
            load.stop()
            await feeding
            await all_decided(kafka_settings, load)
    finally:
        first.send_signal(signal.SIGCONT)
        await second.stop()
    await check_journal(kafka_settings, load.sent)


@pytest.mark.timeout(120)
async def test_what_a_worker_was_about_to_write_when_it_froze_counts_for_nothing(
    kafka_settings: KafkaSettings, tmp_path: Path
) -> None:
    """It wakes behind every look at whether it may: the batch that it then writes follows its successor's rows."""
    session = {"STREAM_SESSION_SECONDS": "6"}
    # Each worker claims and begins three partitions with a request each, or a few in one.
    first = patched_worker(kafka_settings, tmp_path / "first.log", "freeze:changelog:30", **session)
    second = stream_worker(kafka_settings, tmp_path / "second.log", **session)
    third = stream_worker(kafka_settings, tmp_path / "third.log", **session)
    load = Load(kafka_settings, seed=4)
    try:
        async with running(first):
            feeding = asyncio.create_task(load.run())
            await until(lambda: stopped(first), timeout=40, what="the first worker froze itself")
            second.start()
            await second.ready(60)
            await until(lambda enough=load.sent + 200: load.sent >= enough)
            load.stop()
            await feeding  # so that nothing hides what comes late but what is written over it
            await all_decided(kafka_settings, load)
            first.send_signal(signal.SIGCONT)
            await until(lambda: not first.running, what="the first worker ends")
            rows = await on_kafka.read(kafka_settings, topics(kafka_settings).changelog.name)
            assert late(rows), "it has written"
            await second.kill()
            third.start()
            await third.ready(60)
            more = Load(kafka_settings, seed=5, first=10_000)
            feeding = asyncio.create_task(more.run())
            await until(lambda: more.sent >= 400)
            more.stop()
            await feeding
            more.sent += load.sent
            await all_decided(kafka_settings, more)
    finally:
        first.send_signal(signal.SIGCONT)
        await second.stop()
        await third.stop()
    await check_journal(kafka_settings, more.sent)


def stopped(child: Child) -> bool:
    """Whether a process is stopped by a signal."""
    stat = Path(f"/proc/{child.pid}/stat").read_text(encoding="utf-8")
    return stat.rpartition(")")[2].split()[0] == "T"


def late(rows: Sequence[Any]) -> bool:
    """Whether a row stands behind one of a newer claim."""
    claims: dict[int, Claims] = {}
    in_order = sorted(rows, key=lambda row: row.offset)  # its timestamps are of before
    return not all(claims.setdefault(row.partition, Claims()).admit(claim_of(row.headers)) for row in in_order)


@pytest.mark.timeout(120)
async def test_a_broker_that_dies_and_comes_back_loses_nothing(tmp_path: Path) -> None:
    async with embedded.running(tmp_path / "kafka") as broker:
        settings = unique_settings(broker)
        await on_kafka.create_topics(settings)
        worker = stream_worker(settings, tmp_path / "stream.log")
        async with running(worker):
            load = Load(settings, seed=3)
            feeding = asyncio.create_task(load.run())
            await until(lambda: load.sent >= 200)
            await broker.kill()
            await broker.start()
            await until(lambda enough=load.sent + 200: load.sent >= enough, timeout=60)
            load.stop()
            await feeding
            if not worker.running:  # it may end itself; then its supervisor's part is ours
                worker.start()
                await worker.ready(60)
            await all_decided(settings, load)
        await check_journal(settings, load.sent)
