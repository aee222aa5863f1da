"""How long partitions stand still when stream workers come, go and die, and how long a table takes to recover.

    .venv/bin/python -m bench.takeover [--conferences 10000] [--conferences 100000]

For each size: one worker starts on such a table; a second one joins, ends in order, joins again, and is killed. A probe
writes an input to each partition twenty times a second. The pause of a partition is the longest time that one of its
inputs waited for its decision: from the broker's timestamp of the input to that of the journal's entry. Last, the
SIGTERM of a worker. See docs/scale.md.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import itertools
import os
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiokafka import AIOKafkaProducer

from bench.stages import read
from callyard import clients
from callyard.errors import CommandError
from callyard.kafka import embedded
from callyard.processes import Child, worker
from callyard.records import JOURNAL, ConferenceUnregistered, JournalEntry, Source, parse
from callyard.settings import KafkaSettings
from callyard.topics import partition_of, topics
from callyard.topics_command import ensure
from streams.rows import (
    DeskRow,
    RegistrationRow,
    RegistrationState,
    StayRow,
    StayState,
    desk_key,
    encode,
    registration_key,
    stay_key,
)

PARTITIONS = 12
READY_SECONDS = 300.0
DAY_MS = 86_400_000
PROBE_SECONDS = 0.05
SETTLE_SECONDS = 3.0
"""The probe's time before and after each event."""


async def fill(settings: KafkaSettings, conferences: int) -> None:
    """A table of so many conferences: each with its desk, a live registration, and a caller who talks."""
    changelog, now = topics(settings).changelog.name, int(time.time() * 1000)
    async with clients.producer(settings, "fill", max_batch_size=1_000_000) as producer:
        for number in range(conferences):
            conference, call = str(1_000_000 + number), f"gw-1/{now}.{number}"
            partition = partition_of(conference.encode(), PARTITIONS)
            registration = RegistrationRow(
                "node-1", Source.FREESWITCH, f"instance-{number}", f"sip:{conference}@192.0.2.1:5060;transport=tcp",
                RegistrationState.LIVE, serial=1, since_ms=now, until_ms=now + DAY_MS, renewed_ms=now,
            )  # fmt: skip
            stay = StayRow(
                call, "gw-1", 1, StayState.CONNECTED, since_ms=now, until_ms=now + DAY_MS, attempt=1,
                target=registration.key, connected_ms=now, talk=1, caller="+493012****",
            )  # fmt: skip
            desk = DeskRow(version=3, now_ms=now, head="0" * 64)
            for key, row in (
                (registration_key(partition, conference, registration.key), registration),
                (stay_key(partition, conference, call), stay),
                (desk_key(partition, conference), desk),
            ):
                await producer.send(changelog, encode(row), key=key, partition=partition)
        await producer.flush()


@dataclasses.dataclass
class Probe:
    """Writes an input to each partition again and again."""

    settings: KafkaSettings

    async def _send(self, producer: AIOKafkaProducer, conferences: list[str]) -> None:
        name = topics(self.settings).registrations.name
        for number in itertools.count():
            for conference in conferences:
                record = ConferenceUnregistered(
                    sender="probe", conference=conference, source=Source.FREESWITCH, instance_id=f"p{number}",
                    node_id="probe",
                )  # fmt: skip
                await producer.send(name, record.encode(), key=conference.encode())
            await asyncio.sleep(PROBE_SECONDS)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Probe until the block ends."""
        found: dict[int, str] = {}
        for number in itertools.count(5_000_000):
            found.setdefault(partition_of(str(number).encode(), PARTITIONS), str(number))
            if len(found) == PARTITIONS:
                break
        async with clients.producer(self.settings, "probe") as producer:
            sending = asyncio.create_task(self._send(producer, list(found.values())))
            try:
                yield
            finally:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)

    async def pauses(self, since: float) -> dict[int, float]:
        """The longest wait of an input of each partition, seconds, of those written since then (by `time.time`).

        Returns when all of them are decided. Raises `CommandError` where that takes too long.
        """
        deadline = time.monotonic() + READY_SECONDS
        while (found := await self._waits(since)) is None:
            if time.monotonic() > deadline:
                raise CommandError(f"inputs are not decided after {READY_SECONDS:g} s")
            await asyncio.sleep(1)
        return found

    async def _waits(self, since: float) -> dict[int, float] | None:
        names = topics(self.settings)
        written: dict[tuple[int, int], int] = {}
        decided: dict[tuple[int, int], int] = {}
        for record in await read(self.settings, names.registrations.name, names.journal.name):
            if record.topic == names.registrations.name:
                if record.timestamp >= since * 1000:
                    written[record.partition, record.offset] = record.timestamp
            else:
                entry = parse(JOURNAL, record.value)
                if isinstance(entry, JournalEntry) and entry.position.topic == names.registrations.name:
                    decided.setdefault((entry.position.partition, entry.position.offset), record.timestamp)
        longest: dict[int, float] = {}
        for position, at in written.items():
            if position not in decided:
                return None
            longest[position[0]] = max(longest.get(position[0], 0), (decided[position] - at) / 1000)
        return longest


def say(what: str, text: str) -> None:
    print(f"{what:<44} {text}", flush=True)


async def start(child: Child) -> tuple[float, float]:
    """Start a worker; seconds until it is ready, and those of them since it joined."""
    began = time.monotonic()
    child.start()
    fields = await child.ready(READY_SECONDS)
    return time.monotonic() - began, fields["seconds"]


def resident_mb(child: Child) -> float:
    """The memory that a process has, in megabytes."""
    pages = Path(f"/proc/{child.pid}/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6


async def measured(probe: Probe, what: str, event: object) -> None:
    """The pauses around an event (an awaitable)."""
    since = time.time()
    async with probe.running():
        await asyncio.sleep(SETTLE_SECONDS)
        await event  # type: ignore[misc]
        await asyncio.sleep(SETTLE_SECONDS * 4)
    found = sorted((await probe.pauses(since)).values())
    say(what, f"pause of a partition: shortest {found[0]:.2f} s, median {found[len(found) // 2]:.2f} s,"
        f" longest {found[-1]:.2f} s")  # fmt: skip


async def one_size(directory: Path, conferences: int) -> None:
    """All of it on a table of this size."""
    async with embedded.running(directory / "kafka") as kafka:
        settings = KafkaSettings(bootstrap_servers=kafka.bootstrap_servers, partitions=PARTITIONS)
        await ensure(settings)
        await fill(settings, conferences)
        environment = {
            "CALLYARD_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "CALLYARD_KAFKA_PARTITIONS": str(PARTITIONS),
        }
        first, second = (worker("stream", environment=environment, log=directory / f"{n}.log") for n in (1, 2))
        try:
            say(f"{conferences} conferences, {3 * conferences} rows", "")
            all_seconds, joined = await start(first)
            say("  a worker alone, from start to ready", f"{all_seconds:.1f} s ({joined:.1f} s since it joined)")
            say("  its memory", f"{resident_mb(first):.0f} MB")
            probe = Probe(settings)
            await measured(probe, "  a second one joins", start(second))
            await measured(probe, "  it ends in order", second.stop())
            await start(second)
            await measured(probe, "  it is killed", second.kill())
            began = time.monotonic()
            await first.stop(30)
            say("  SIGTERM of the last one, until it has ended", f"{time.monotonic() - began:.2f} s")
        finally:
            for child in (first, second):
                await child.stop(30)


def main() -> None:
    """Measure each size, print figures."""
    parser = argparse.ArgumentParser(description="Measure takeovers of stream workers and recovery of their table.")
    parser.add_argument("--conferences", type=int, action="append", help="size of the table; may be given again")
    sizes = parser.parse_args().conferences or [10_000, 100_000]
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="callyard-takeover-") as directory:
            asyncio.run(one_size(Path(directory), size))


if __name__ == "__main__":
    main()
