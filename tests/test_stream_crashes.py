"""A stream worker that dies between each pair of its effects, or gets stuck, or reads its timers too early.

The order of effects is tried with random histories in ``test_partition.py``; here it is the real worker on the real
broker, killed at a chosen request (`tests.support.patched_stream`), and replaced by one that is as it comes.
"""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from callyard.records import TIMERS, DeadlinePassed, parse
from callyard.settings import KafkaSettings
from callyard.topics import topics
from tests.support import kafka as on_kafka
from tests.support.events import connected, parked, registered
from tests.support.patched_stream import Place, patched_worker
from tests.support.streams import check_journal, follower, instructions, stream_worker
from tests.support.wait import until

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]

CONFERENCES = ("49123", "49124", "49125", "49126")
# State goes out as one request or a few, first the epoch's and then the first group's; of the outputs each is one.
EFFECTS: list[tuple[str, int, Place]] = [
    ("changelog", 1, "before"),
    ("changelog", 1, "after"),
    ("changelog", 2, "after"),
    ("changelog", 3, "after"),
    ("journal", 1, "after"),
    ("journal", 2, "before"),
    ("journal", 3, "after"),
    ("dials", 1, "before"),
    ("dials", 1, "after"),
    ("dials", 2, "after"),
    ("commit", 1, "before"),
    ("commit", 1, "after"),
]


@pytest.mark.parametrize(("topic", "number", "place"), EFFECTS, ids=["-".join(map(str, e)) for e in EFFECTS])
async def test_a_worker_killed_between_any_two_effects_loses_nothing_and_doubles_nothing(
    kafka_settings: KafkaSettings, tmp_path: Path, topic: str, number: int, place: Place
) -> None:
    names = topics(kafka_settings)
    dying = patched_worker(kafka_settings, tmp_path / "dying.log", f"die:{topic}:{number}:{place}")
    calls = [(c, parked(f"{c}-{caller}", conference=c)) for c in CONFERENCES for caller in range(3)]
    registrations = [(c, registered(conference=c)) for c in CONFERENCES]
    await on_kafka.send(kafka_settings, names.calls.name, *calls)
    await on_kafka.send(kafka_settings, names.registrations.name, *registrations)
    dying.start()
    assert await asyncio.wait_for(dying.wait(), 60) == -signal.SIGKILL, dying.tail()
    # Something new comes, too: what a crash has made of the table must also be gone on with.
    more = [(c, connected(f"{c}-0", conference=c)) for c in CONFERENCES]
    await on_kafka.send(kafka_settings, names.calls.name, *more)
    inputs = len(calls) + len(registrations) + len(more)
    worker = stream_worker(kafka_settings, tmp_path / "next.log")
    worker.start()
    try:
        async with follower(kafka_settings) as journal:
            await until(lambda: journal.decided(inputs), 60, lambda: f"{journal} of {inputs}")
    finally:
        await worker.stop()
    entries = await check_journal(kafka_settings, inputs)
    dialled = {i.call_id for entry in entries for i in entry.instructions}
    assert {f"gw-1/{c}-{caller}" for c in CONFERENCES for caller in (1, 2)} <= dialled


async def test_a_worker_whose_rebalance_goes_nowhere_ends(kafka_settings: KafkaSettings, tmp_path: Path) -> None:
    # A member that is frozen keeps the group from agreeing, for as long as its session.
    session = {"STREAM_SESSION_SECONDS": "30"}
    stuck = patched_worker(kafka_settings, tmp_path / "stuck.log", "set:streams.worker:STUCK_SECONDS:3", **session)
    frozen = stream_worker(kafka_settings, tmp_path / "frozen.log", **session)
    newcomer = stream_worker(kafka_settings, tmp_path / "newcomer.log", **session)
    try:
        stuck.start()
        await stuck.ready(60)
        frozen.start()
        await frozen.ready(60)
        frozen.send_signal(signal.SIGSTOP)
        newcomer.start()
        assert await asyncio.wait_for(stuck.wait(), 20) == 70
        assert "a rebalance made no progress for 3 s" in stuck.tail(60)
    finally:
        frozen.send_signal(signal.SIGCONT)
        for worker in (stuck, frozen, newcomer):
            await worker.kill()


async def test_a_timer_that_was_read_too_early_is_published_again_but_not_at_every_tick(
    kafka_settings: KafkaSettings, tmp_path: Path
) -> None:
    # As where the partition's leader is behind a broker that this worker has learnt the clock from.
    worker = patched_worker(
        kafka_settings, tmp_path / "early.log", "ahead:2",
        POLICY_INSTRUCTION_DEADLINE_SECONDS="3", STREAM_TICK_SECONDS="0.02",
    )  # fmt: skip
    names = topics(kafka_settings)
    worker.start()
    try:
        await worker.ready(60)
        await on_kafka.send(kafka_settings, names.calls.name, ("49123", parked()))
        await on_kafka.send(kafka_settings, names.registrations.name, ("49123", registered()))
        first, second = (await instructions(kafka_settings, 2))[:2]
    finally:
        await worker.stop()
    late = second.issued_at_ms - first.deadline_ms
    assert 0 <= late < 1500, "nothing is decided before its time, nor long after"
    timers = [parse(TIMERS, record.value) for record in await on_kafka.read(kafka_settings, names.timers.name)]
    early = [t for t in timers if isinstance(t, DeadlinePassed) and t.due_ms == first.deadline_ms]
    assert 2 <= len(early) <= 8
