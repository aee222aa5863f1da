"""A worker's tasks: each one owned, named and guarded; the worker ends when any of them does.

A worker is one coroutine that adds its tasks and awaits `Tasks.run`. An unexpected end of a task, with or without an
exception, ends the worker, so that its supervisor restarts it; nothing runs on half-alive. At SIGTERM or SIGINT the
tasks are cancelled in the reverse order of their start, each awaited before the next, so that what feeds a task stops
before it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import structlog
import uvloop

log = structlog.get_logger(__name__)

T = TypeVar("T")

EXIT_LATE = 75


class TaskEndedError(RuntimeError):
    """A task that must run as long as its worker came to an end without an error: a bug of ours."""


class Tasks:
    """The tasks of one worker."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Start a task that must not end before the worker does."""
        self._tasks.append(asyncio.create_task(work, name=name))

    async def run(self, stop: asyncio.Event) -> None:
        """Wait for ``stop`` or for the first task to end; then end all of them. Raises what that task raised."""
        stopping = asyncio.create_task(stop.wait(), name="stop")
        try:
            await asyncio.wait([stopping, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
            first = next((task for task in self._tasks if task.done()), None)
        finally:
            stopping.cancel()
            await self.cancel()
        if first is None:
            return
        if not first.cancelled() and (error := first.exception()) is not None:
            raise error
        raise TaskEndedError(f"task {first.get_name()!r} ended by itself")

    async def cancel(self) -> None:
        """End all tasks, the last started first, and wait for each; what one raises while it ends is logged."""
        for task in reversed(self._tasks):
            had_ended = task.done()
            task.cancel()
            [result] = await asyncio.gather(task, return_exceptions=True)
            if isinstance(result, Exception) and not had_ended:
                log.warning("task failed while ending", task=task.get_name(), error=repr(result))


async def within(work: Awaitable[T], seconds: float) -> T:
    """What ``work`` returns or raises; `asyncio.TimeoutError` after so many seconds, and it is cancelled then.

    Unlike `asyncio.wait_for` before Python 3.12 it never swallows a cancellation that comes as the work ends: a task
    that should end would go on, and whoever awaits its end with it.
    """
    task = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
    except BaseException:
        task.cancel()
        raise
    if done:
        return task.result()
    task.cancel()
    await asyncio.wait({task})
    raise asyncio.TimeoutError


def run(main: Callable[[asyncio.Event], Coroutine[Any, Any, None]], grace_seconds: float = 0) -> None:
    """Run a worker on uvloop until SIGTERM or SIGINT; the event given to ``main`` is set then.

    ``grace_seconds``: how long it may take to end from then on (0: as long as it likes). After that the process ends
    with status `EXIT_LATE`: what it was about is in Kafka and is gone on with by the next one.
    """

    async def supervised() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        ending = asyncio.create_task(_watch_end(stop, grace_seconds), name="end") if grace_seconds else None
        await main(stop)
        if ending is not None:
            ending.cancel()

    uvloop.run(supervised())


async def _watch_end(stop: asyncio.Event, grace_seconds: float) -> None:
    await stop.wait()
    began = time.monotonic()
    log.info("stopping", grace_seconds=grace_seconds)
    try:
        await asyncio.sleep(grace_seconds)
    except asyncio.CancelledError:
        log.info("stopped", seconds=round(time.monotonic() - began, 3))
        raise
    log.error("did not end in time; ending now", grace_seconds=grace_seconds,
              tasks=sorted(task.get_name() for task in asyncio.all_tasks()))  # fmt: skip
    sys.stderr.flush()
    os._exit(EXIT_LATE)
