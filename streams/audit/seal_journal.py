"""Takes a checkpoint: reads what the journal grew by since the last one, and writes what that was, signed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from aiokafka import TopicPartition

from callyard.settings import AuditSettings, KafkaSettings
from callyard.topics import topics
from streams.audit import checkpoints
from streams.audit.checkpoints import Checkpoint, CheckpointError
from streams.audit.reading import Reading, reading
from streams.audit.seal import Seal


async def take(
    settings: KafkaSettings,
    audit: AuditSettings,
    directory: Path,
    watch: Callable[[Reading], None] = lambda _: None,
) -> tuple[Path, Checkpoint]:
    """Write the next checkpoint into ``directory``; returns its file and what it says. ``watch`` gets the reading.

    Raises `CheckpointError` where the journal doesn't go on after the last checkpoint (`audit verify` says what is
    missing), and what reading and writing raise.
    """
    key = checkpoints.private_key(audit)
    name = topics(settings).journal.name
    known = checkpoints.read(directory, key.public_key(), name)
    last = known[-1] if known else None
    async with reading(settings, [name]) as found:
        _require_partitions({tp.partition for tp in found.bounds}, last)
        begins = {tp: last.ranges[tp.partition].end if last and tp.partition in last.ranges else start
                  for tp, (start, _) in found.bounds.items()}  # fmt: skip
        for tp, (start, end) in found.bounds.items():
            if end < begins[tp]:
                raise CheckpointError(
                    f"{tp.topic}-{tp.partition} ends at {end}, checkpoint {last.number if last else 0} at {begins[tp]}:"
                    " run 'callyard audit verify'"
                )
            _require_unexpired(tp, start, begins[tp], last)
        found.read_instead({tp: (begins[tp], end) for tp, (_, end) in found.bounds.items()})
        watch(found)
        taken_ms = int(time.time() * 1000)
        seals = {tp: Seal(tp.partition, begins[tp]) for tp in found.bounds}
        async for batch in found.batches():
            for record in batch:
                seals[TopicPartition(record.topic, record.partition)].take(
                    record.offset, record.timestamp, record.key, record.value
                )
        ranges = [seals[tp].close(end) for tp, (_, end) in found.bounds.items()]
    path = checkpoints.write(directory, key, name, taken_ms, ranges, last)
    return path, checkpoints.read(directory, key.public_key(), name)[-1]


def _require_partitions(there: set[int], last: Checkpoint | None) -> None:
    if last is not None and (gone := sorted(last.ranges.keys() - there)):
        raise CheckpointError(
            f"{last.topic} lacks partitions that checkpoint {last.number} sealed: {', '.join(map(str, gone))}:"
            " run 'callyard audit verify'"
        )


def _require_unexpired(tp: TopicPartition, start: int, begin: int, last: Checkpoint | None) -> None:
    if start > begin:
        raise CheckpointError(
            f"{tp.topic}-{tp.partition} begins at {start}, but checkpoint {last.number if last else 0} ends at {begin}:"
            " what was between them can't be sealed any more; begin a new directory, and take checkpoints more often"
        )
