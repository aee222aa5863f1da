"""The hook without Kafka: what its reader can take beside what FreeSWITCH sends, how soon it hands on, what it keeps.

``python -m bench.hook EVENTS`` prints the memory after so many events, as JSON: in a process of its own, because what
another part of the bench held shows in a process's memory for ever.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import uvloop
from pydantic import SecretStr

from bench.figures import Spread
from callyard import log
from callyard.errors import CommandError
from callyard.notify import Notifier
from callyard.parts import freeswitch
from callyard.parts.freeswitch import FreeSwitch
from callyard.records import Sent
from callyard.settings import EslSettings, LogSettings, NodeSettings
from fs_hooks import esl
from fs_hooks.aside import Aside
from fs_hooks.conferences import Conferences
from fs_hooks.publisher import Publisher
from fs_hooks.registrar import Registrar
from fs_hooks.worker import Hook

READ_BYTES = 64 * 1024
OPENINGS = 200
BETWEEN_SECONDS = 0.005
LIVING = 500
"""Conferences that live at a time while memory is measured."""
STORY = ("conference-create", "add-member", "del-member", "conference-destroy")


def figures(events: int, million: int) -> dict[str, Any]:
    """All of it: ``events`` through the reader, ``million`` for the memory."""
    log.configure(LogSettings(level="warning"), "bench")
    busiest = _busiest_second()
    found: dict[str, Any] = {"events": events, "recordings: most events in a second": busiest}
    for fmt in ("plain", "json"):
        found |= _reader(fmt, events)
    found["times the recordings' busiest second"] = round(found["plain: events a second"] / busiest)
    handed = uvloop.run(handed_over())
    for name in ("p50", "p99"):
        found[f"ESL bytes to Kafka's client, {name}, ms"] = getattr(handed, name)
    done = subprocess.run(
        [sys.executable, "-m", "bench.hook", str(million)],
        capture_output=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    if done.returncode:
        raise CommandError(f"the memory could not be measured: {done.stderr.decode(errors='replace')[-500:]}")
    memory: dict[str, Any] = orjson.loads(done.stdout)
    return found | memory


def _busiest_second() -> int:
    times = [int(at) for at in re.findall(rb"^Event-Date-Timestamp: ([0-9]+)$", _churn(), re.MULTILINE)]
    return max(sum(at <= other < at + 1_000_000 for other in times) for at in times)


def _churn() -> bytes:
    """Forty conferences that come and go: the recording with the most events in a time."""
    return (Path(__file__).parents[1] / "tests" / "fixtures" / "esl" / "churn.esl").read_bytes()


def _reader(fmt: str, events: int) -> dict[str, Any]:
    recorded = [
        frame.whole
        for frame in freeswitch.frames(freeswitch.recording(f"lifecycle-{fmt}"))
        if f"text/event-{fmt}".encode() in frame.whole
    ]
    data = b"".join(recorded[number % len(recorded)] for number in range(events))
    reader, conferences, seen = esl.Reader(), Conferences(), 0
    began = time.perf_counter()
    for start in range(0, len(data), READ_BYTES):
        for frame in reader.feed(data[start : start + READ_BYTES]):
            if isinstance(frame, esl.Event):
                conferences.event(frame)
                seen += 1
    seconds = time.perf_counter() - began
    if seen != events:
        raise CommandError(f"the reader found {seen} events of {events} ({fmt})")
    return {
        f"{fmt}: events a second": round(events / seconds),
        f"{fmt}: megabytes a second": round(len(data) / seconds / 1e6, 1),
    }


class _Taken:
    """Takes each record at once, and notes when."""

    def __init__(self) -> None:
        self.at_ns: dict[str, int] = {}
        self.enough = asyncio.Event()

    async def begin(self, record: Sent, conference: str) -> asyncio.Future[object]:
        self.at_ns.setdefault(conference, time.monotonic_ns())
        if len(self.at_ns) == OPENINGS:
            self.enough.set()
        delivery: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        delivery.set_result(record)
        return delivery


async def handed_over() -> Spread:
    """From the moment at which FreeSWITCH's double writes an opening to the hand-over of its registration, in ms."""
    node = NodeSettings(id="bench", sip_uri="sip:{conference}@192.0.2.7")
    taken = _Taken()
    publisher = Publisher(taken, node)
    notifier = Notifier({})
    async with FreeSwitch() as double:
        settings = EslSettings(port=double.port, password=SecretStr(double.password))
        hook = Hook(settings, node, Registrar(node, publisher, notifier), Aside(None), notifier)
        tasks = [asyncio.create_task(publisher.run()), asyncio.create_task(hook.follow())]
        try:
            await asyncio.wait_for(double.asked(1), 10)
            written = []
            for number in range(OPENINGS):
                written.append(double.open(str(50_000 + number)))
                await asyncio.sleep(BETWEEN_SECONDS)
            await asyncio.wait_for(taken.enough.wait(), 10)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    return Spread.of((taken.at_ns[one.conference] - one.monotonic_ns) / 1e6 for one in written)


def rss_kb(pid: int | str = "self") -> int:
    """The resident memory of a process, in kB."""
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1])


def _events(count: int) -> Iterator[bytes]:
    """Events as FreeSWITCH sends them: each conference with an instance of its own, some hundred at a time."""
    recorded = {
        action: frame.whole
        for frame in freeswitch.frames(freeswitch.recording("lifecycle-plain"))
        for action in STORY
        if f"\nAction: {action}\n".encode() in frame.whole
    }
    [original] = re.findall(rb"\nConference-Unique-ID: (\S+)\n", recorded["conference-create"])
    living: list[tuple[bytes, bytes]] = []
    said = 0
    while said < count:
        for instance, number in living[:LIVING]:
            for action in STORY[2:]:
                yield recorded[action].replace(original, instance).replace(b": 49123\n", b": %s\n" % number)
                said += 1
        living = [(str(uuid.uuid4()).encode(), b"%d" % (10_000 + n)) for n in range(LIVING)]
        for instance, number in living:
            for action in STORY[:2]:
                yield recorded[action].replace(original, instance).replace(b": 49123\n", b": %s\n" % number)
                said += 1


async def _memory(events: int) -> dict[str, Any]:
    """What a hook's parts hold after so many events; Kafka's client isn't there."""
    node = NodeSettings(id="bench", sip_uri="sip:{conference}@192.0.2.7")
    publisher = Publisher(_Taken(), node)
    running = asyncio.create_task(publisher.run())
    registrar, conferences, reader = Registrar(node, publisher, Notifier({})), Conferences(), esl.Reader()
    registrar.followed(next(iter(node.used_sources)))
    before, tenth, seen = rss_kb(), 0, 0
    for data in _events(events):
        for frame in reader.feed(data):
            if isinstance(frame, esl.Event):
                registrar.apply(conferences.event(frame), time.monotonic())
                seen += 1
        if seen % LIVING == 0:
            await publisher.settled()
        if seen == events // 10:
            tenth = rss_kb()
    running.cancel()
    await asyncio.wait({running})
    after = rss_kb()
    return {
        "memory: events": seen,
        "memory: MB before": round(before / 1000, 1),
        "memory: MB after a tenth": round(tenth / 1000, 1),
        "memory: MB after all": round(after / 1000, 1),
    }


if __name__ == "__main__":
    log.configure(LogSettings(level="warning"), "bench")
    sys.stdout.buffer.write(orjson.dumps(uvloop.run(_memory(int(sys.argv[1])))))
