"""``callyard stream`` with something about it changed, for tests: ``python -m tests.support.patched_stream CHANGE…``.

The worker itself has no hooks for tests. Each change is one argument:

* ``die:TOPIC:NUMBER:PLACE``: SIGKILLs its own process at the so-manyth produce request to that topic (the last part of
  its name; ``commit`` for commits of offsets): ``before`` it is written, or ``after`` the broker has answered it and
  nothing was done about the answer. Each output is a request of its own then, so that there is a between.
* ``freeze:TOPIC:NUMBER``: SIGSTOPs its own process before that request is written: after every look at whether it may.
* ``set:MODULE:NAME:SECONDS``: another value for a constant.
* ``ahead:SECONDS``: believes the broker's clock to be that far ahead.
* ``slow-seek:SECONDS``: takes that long until it begins to seek after a recovery.
* ``raise:NUMBER``: Faust's agent raises at its so-manyth event.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import sys
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, Literal

from aiokafka.conn import AIOKafkaConnection
from aiokafka.protocol.commit import OffsetCommitRequest
from aiokafka.protocol.produce import ProduceRequest

from callyard import main
from callyard.processes import Child
from callyard.settings import KafkaSettings
from tests.support import kafka

Place = Literal["before", "after"]


def patched_worker(settings: KafkaSettings, log: Path, *changes: str, **more: str) -> Child:
    """Such a worker, not started yet; ``more``: further settings, as for `tests.support.streams.stream_worker`."""
    return Child(
        "stream",
        [sys.executable, "-m", "tests.support.patched_stream", *changes],
        environment={
            **kafka.environment(settings),
            **{f"CALLYARD_{name}": value for name, value in more.items()},
            "CALLYARD_LOG_FORMAT": "json",
        },
        log=log,
        directory=Path(__file__).parents[2],
    )


def _about(request: Any, topic: str) -> bool:
    if isinstance(request, OffsetCommitRequest):
        return topic == "commit"
    if not isinstance(request, ProduceRequest):
        return False
    return any(name.rsplit(".", 1)[-1] == topic or name.endswith(f"-{topic}") for name, _ in request._topics)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_at(topic: str, number: int, place: Place) -> None:
    importlib.import_module("streams.worker").OUTPUT_BATCH_BYTES = 1
    original = AIOKafkaConnection.send
    seen = 0

    async def answered(answer: Awaitable[Any]) -> Any:
        await answer
        _die()

    def send(self: AIOKafkaConnection, request: Any, expect_response: bool = True) -> Any:
        nonlocal seen
        if not _about(request, topic) or (seen := seen + 1) != number:
            return original(self, request, expect_response)
        if place == "before":
            _die()
        return answered(original(self, request, expect_response))

    AIOKafkaConnection.send = send


def _freeze_at(topic: str, number: int) -> None:
    original = AIOKafkaConnection.send
    seen = 0

    def send(self: AIOKafkaConnection, request: Any, expect_response: bool = True) -> Any:
        nonlocal seen
        if _about(request, topic) and (seen := seen + 1) == number:
            os.kill(os.getpid(), signal.SIGSTOP)
        return original(self, request, expect_response)

    AIOKafkaConnection.send = send


def _set(module: str, name: str, seconds: float) -> None:
    owner = importlib.import_module(module)
    assert isinstance(getattr(owner, name), float), f"{module} has no {name}"
    setattr(owner, name, seconds)


def _ahead(seconds: float) -> None:
    engine = importlib.import_module("streams.engine").Engine
    original = engine._broker_now
    engine._broker_now = lambda self: original(self) + int(seconds * 1000)


def _slow_seek(seconds: float) -> None:
    consumer = importlib.import_module("streams.faust_guards").GuardedConsumer
    original = consumer.perform_seek

    async def slow(self: Any) -> None:
        await asyncio.sleep(seconds)
        await original(self)

    consumer.perform_seek = slow


def _raise(number: int) -> None:
    engine = importlib.import_module("streams.engine").Engine
    original = engine.put
    seen = 0

    async def raising(self: Any, event: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == number:
            raise LookupError("raised by the test")
        await original(self, event)

    engine.put = raising


def _change(words: list[str]) -> None:
    match words:
        case ["die", topic, number, ("before" | "after") as place]:
            _die_at(topic, int(number), place)
        case ["freeze", topic, number]:
            _freeze_at(topic, int(number))
        case ["set", module, name, seconds]:
            _set(module, name, float(seconds))
        case ["ahead", seconds]:
            _ahead(float(seconds))
        case ["slow-seek", seconds]:
            _slow_seek(float(seconds))
        case ["raise", number]:
            _raise(int(number))
        case _:
            raise SystemExit(f"no such change: {words}")


if __name__ == "__main__":
    for change in sys.argv[1:]:
        _change(change.split(":"))
    sys.exit(main.main(["stream"]))
