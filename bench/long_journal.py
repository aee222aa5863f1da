"""``python -m bench.long_journal``: the audit's commands on a journal of ten million entries.

A stream worker decides a backlog and forgets what is over, after a minute. That is decided again with its times spread
over three weeks, so that rows and desks are forgotten there as late as they are in production. Its journal is then
written again and again, each copy three weeks later and of other conferences, with chains and positions that hold. What
is measured: the whole of it verified, and a day out of its middle verified, told and exported. The figures are printed
as JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
import uvloop
from aiokafka import AIOKafkaProducer

from bench.audit import run
from bench.stages import read
from bench.throughput import backlog, stream
from callyard import clients
from callyard.errors import CommandError
from callyard.kafka import embedded
from callyard.processes import Child, worker
from callyard.settings import KafkaSettings
from callyard.topics import DAY_MS, partition_of, topics
from callyard.topics_command import ensure

SPREAD_DAYS = 21
FIRST_NUMBER = 100_000
"""That of the backlog's first conference."""
TIME = re.compile(rb"\b1\d{12}\b")
NUMBER = re.compile(rb'(?<=["/\-:])1\d{5}(?=["\.@|])')
WORKER_SECONDS = 600.0
UNSENT = 20_000
SOON_FORGOTTEN = {
    "CALLYARD_POLICY_ENDED_RETENTION_SECONDS": "60", "CALLYARD_POLICY_STUB_RETENTION_SECONDS": "60",
}  # fmt: skip


async def measure(entries: int, inputs: int, folder: Path) -> dict[str, Any]:
    """Make the journal and read it; returns the figures."""
    async with embedded.running(folder / "kafka") as kafka:
        await stream(kafka, folder, inputs, SOON_FORGOTTEN, _forgotten)
        days = SPREAD_DAYS * (entries // inputs + 2)  # Kafka takes no record of the future
        spread = await _spread(backlog(kafka), folder, days)
        base = await read(spread, topics(spread).journal.name)
        target = spread.model_copy(update={"topic_prefix": "replay-long"})
        await ensure(target)
        began = time.monotonic()
        written = await _copy(base, target, entries, inputs // 4)
        made = time.monotonic() - began
        return {"entries": written, "made in s": round(made), **await asyncio.to_thread(_read, target, base, written)}


async def _forgotten(settings: KafkaSettings, child: Child) -> None:
    """Wait until all desks are forgotten."""

    async def all_of_them() -> bool:
        await asyncio.sleep(2)
        inputs = await read(settings, topics(settings).registrations.name)
        journal = await read(settings, topics(settings).journal.name)
        retired = sum(b'"forgotten":"desk"' in record.value for record in journal)
        return retired == len({record.key for record in inputs})

    await child.until(all_of_them, WORKER_SECONDS, "through with forgetting")


async def _spread(source: KafkaSettings, folder: Path, days: int) -> KafkaSettings:
    """The backlog decided again, over weeks, the first of which was so many days ago."""
    target = source.model_copy(update={"topic_prefix": "replay-spread"})
    await ensure(target)
    names = [topic.name for topic in topics(source).inputs]
    times = [record.timestamp for name in names for record in await read(source, name)]
    file = folder / "spread.toml"
    file.write_text(
        f'[kafka]\nbootstrap_servers = "{target.bootstrap_servers}"\npartitions = {target.partitions}\n'
        f'topic_prefix = "{target.topic_prefix}"\n'
    )
    environment = {
        "CALLYARD_KAFKA_BOOTSTRAP_SERVERS": target.bootstrap_servers,
        "CALLYARD_KAFKA_TOPIC_PREFIX": target.topic_prefix,
    }
    child = worker("stream", environment=environment, log=folder / "spread.log")
    child.start()
    try:
        await child.ready(60)
        space = SPREAD_DAYS * DAY_MS / max(1, max(times) - min(times))
        words = ["--into", str(file), "--space", f"{space:.0f}", "--begin", f"-{days}d", "--same-kafka", "--json"]
        await asyncio.to_thread(run, [sys.executable, "-m", "callyard.main", "replay", *words], source)
    finally:
        await child.stop()
    return target


async def _copy(base: list[Any], target: KafkaSettings, entries: int, conferences: int) -> int:
    """The journal again and again, until it has so many entries."""
    base.sort(key=lambda record: record.timestamp)
    name, copies = topics(target).journal.name, -(-entries // len(base))
    offsets: dict[tuple[str, int], int] = {}
    written, unsent = 0, set[asyncio.Future[Any]]()
    async with clients.producer(target, "bench", max_batch_size=512 * 1024) as producer:
        for copy in range(copies):
            heads: dict[str, str] = {}
            for record in base:
                unsent.add(await _again(producer, name, target.partitions, record, copy, conferences, heads, offsets))
                written += 1
                if len(unsent) >= UNSENT:
                    await asyncio.gather(*unsent)
                    unsent.clear()
        await asyncio.gather(*unsent)
    return written


async def _again(
    producer: AIOKafkaProducer, name: str, partitions: int, record: Any, copy: int, conferences: int,
    heads: dict[str, str], offsets: dict[tuple[str, int], int],
) -> Any:  # fmt: skip
    """One record of one copy, sent: the future of its delivery."""
    shift = copy * SPREAD_DAYS * DAY_MS
    at = record.timestamp + shift
    if record.key is None:  # an epoch, or a policy: the same for all copies
        return await producer.send(name, record.value, partition=record.partition, timestamp_ms=at)
    shifted = TIME.sub(lambda found: b"%d" % (int(found[0]) + shift), record.value)
    value = NUMBER.sub(lambda found: b"%d" % (int(found[0]) + copy * conferences), shifted)
    entry = orjson.loads(value)
    conference = entry["conference"]
    partition = partition_of(conference.encode(), partitions)
    if "position" in entry:
        position = entry["position"]
        place = (position["topic"], partition)
        offsets[place] = offsets.get(place, -1) + 1
        position["partition"], position["offset"] = partition, offsets[place]
    if "previous_hash" in entry:
        entry["previous_hash"] = heads[conference]
    value = orjson.dumps(entry)
    heads[conference] = hashlib.sha256(value).hexdigest()
    return await producer.send(name, value, key=conference.encode(), partition=partition, timestamp_ms=at)


def _read(target: KafkaSettings, base: list[Any], written: int) -> dict[str, Any]:
    middle_copy = written // len(base) // 2
    record = [one for one in base if one.key is not None and b'"caller-parked"' in one.value][-1]
    at = record.timestamp + middle_copy * SPREAD_DAYS * DAY_MS
    conference = str(int(record.key) + middle_copy * (max(int(one.key) for one in base if one.key) + 1 - FIRST_NUMBER))
    day = ["--from", _moment(at - DAY_MS // 2), "--to", _moment(at + DAY_MS // 2)]
    journal = topics(target).journal.name
    bare, _ = run([sys.executable, "-m", "bench.bare", journal, str(target.partitions)], target)
    commands = {
        "verify all": ["audit", "verify", "--json"],
        "verify all in one process": ["audit", "verify", "--json", "--processes", "1"],
        "verify a day": ["audit", "verify", *day, "--json"],
        "a conference of that day": ["audit", "conference", conference, *day, "--json"],
        "the table as it was then": ["table", "--as-of", _moment(at), "--json"],
        "export a day's calls": ["export", "calls", *day, "--out", os.devnull, "--format", "jsonl", "--json"],
    }
    figures: dict[str, Any] = {"a bare consumer": {"seconds": round(bare["seconds"], 1), "entries": bare["records"]}}
    for name, words in commands.items():
        began = time.monotonic()
        found, peak = run([sys.executable, "-m", "callyard.main", *words], target, parse="verify" in words)
        figures[name] = {"seconds": round(time.monotonic() - began, 1), "MB at most": round(peak)}
        if "verify" in words:
            if found["findings"]:
                raise CommandError(f"{name}: {found['first_findings'][:3]}")
            figures[name]["entries"] = found["records"]
    return figures


def _moment(ms: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ms / 1000))


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def command(
    entries: Annotated[int, typer.Option(min=1, help="Entries of the journal, at least.")] = 10_000_000,
    inputs: Annotated[int, typer.Option(min=400, help="Inputs of the journal that is copied.")] = 100_000,
) -> None:
    """Make a long journal on an embedded Kafka (1.1 GB of disk for a million entries), and audit it."""
    folder = Path(tempfile.mkdtemp(prefix="callyard-long-"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        found = uvloop.run(measure(entries, inputs, folder))
    sys.stdout.buffer.write(orjson.dumps(found, option=orjson.OPT_INDENT_2) + b"\n")


if __name__ == "__main__":
    app()
