"""Reads a period in several processes, each with its share of the partitions: judging costs more than reading.

All that concerns a desk stands in one partition, so nothing is compared across processes. Each of them reads Kafka for
itself; what was found is put together at the end. One that fails, or is interrupted, ends all.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

from callyard.errors import CommandError
from callyard.settings import KafkaSettings
from callyard.topics import topics
from streams.audit.progress import quiet
from streams.audit.reading import Span, Unreadable, reading, warner
from streams.audit.replay import Replayed, replay
from streams.audit.verify import Report, verification
from streams.policy import Policy

LOOK_SECONDS = 0.2
Progress: TypeAlias = Callable[[int], None]
"""Called now and then with how many records were read."""


class Found(Protocol):
    """What comes of a share, and takes what came of another one."""

    seconds: float

    def add(self, other: Any, /) -> None: ...


F = TypeVar("F", bound=Found)


@dataclass(frozen=True)
class Order:
    """What is to be read."""

    settings: KafkaSettings
    span: Span
    lookback_ms: int
    unreadable: Unreadable
    policy: Policy | None = None
    """Of a replay."""


Job: TypeAlias = Callable[[Order, frozenset[int], Progress], Coroutine[Any, Any, F]]
"""Reads one share; a function of a module, because other processes look it up by name."""


def processes_for(records: int, worth: int) -> int:
    """How many processes are worth their start, at most one for each core; ``worth``: records for each more."""
    return min(len(os.sched_getaffinity(0)), 1 + records // worth)


async def sizes(settings: KafkaSettings, span: Span) -> dict[int, int]:
    """How many records of the period each of the journal's partitions has. Raises `EmptyRangeError` without any."""
    async with reading(settings, [topics(settings).journal.name], span) as found:
        found.require_any()
        return {partition.partition: end - start for partition, (start, end) in found.bounds.items()}


def divided(sizes: Mapping[int, int], processes: int) -> list[frozenset[int]]:
    """The partitions in so many shares (or fewer), about as large as each other; every partition is in one."""
    shares: list[tuple[int, set[int]]] = [(0, set()) for _ in range(max(1, min(processes, len(sizes))))]
    for partition, size in sorted(sizes.items(), key=lambda item: -item[1]):
        smallest = min(range(len(shares)), key=lambda number: shares[number][0])
        total, members = shares[smallest]
        members.add(partition)
        shares[smallest] = (total + size, members)
    return [frozenset(members) for _, members in shares if members]


async def replay_share(order: Order, share: frozenset[int], progress: Progress) -> Replayed:
    """Replay a share. Raises what `replay` and `Replay.run` raise."""
    async with replay(
        order.settings, order.span, lookback_ms=order.lookback_ms, policy=order.policy, unreadable=order.unreadable,
        say=warner(quiet()), partitions=share,
    ) as found:  # fmt: skip
        found.reading.on_progress = progress
        return await found.run()


async def verify_share(order: Order, share: frozenset[int], progress: Progress) -> Report:
    """Verify a share. Raises what `verification` and `Verification.run` raise."""
    async with verification(
        order.settings, order.span, lookback_ms=order.lookback_ms, unreadable=order.unreadable, say=warner(quiet()),
        partitions=share,
    ) as found:  # fmt: skip
        found.reading.on_progress = progress
        return await found.run()


def in_shares(job: Job[F], order: Order, shares: Sequence[frozenset[int]], progress: Progress) -> F:
    """Read each share, several in processes of their own, and put together what was found. Raises as the job does."""
    if len(shares) == 1:
        return asyncio.run(job(order, shares[0], progress))
    context = multiprocessing.get_context("spawn")
    done: Any = context.Array("q", len(shares))
    stop = context.Event()
    began = time.monotonic()
    with (
        _interrupts() as interrupted,
        ProcessPoolExecutor(len(shares), mp_context=context, initializer=_begin, initargs=(done, stop)) as pool,
    ):
        try:
            waiting = _started(pool, job, order, shares)
            found = []
            while waiting:
                ended, waiting = wait(waiting, LOOK_SECONDS, return_when=FIRST_COMPLETED)
                found += [one.result() for one in ended]
                progress(sum(done))
                if interrupted.is_set():
                    raise KeyboardInterrupt
        except BrokenProcessPool:
            raise CommandError("one of the processes was killed (memory?): try fewer --processes") from None
        finally:
            stop.set()
    return together(found, time.monotonic() - began)


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Set by Ctrl-C: as an exception, which may come anywhere, it could be lost in somebody's destructor."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted  # Python tells the main thread alone
        return

    def tell(*_: object) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt  # once more: don't wait for anything
        interrupted.set()

    before = signal.signal(signal.SIGINT, tell)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def _started(pool: ProcessPoolExecutor, job: Job[F], order: Order, shares: Sequence[frozenset[int]]) -> set[Future[F]]:
    # Processes inherit this: Ctrl-C reaches the whole group, and is to end none of them while it starts.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return {pool.submit(_share, job, order, share, number) for number, share in enumerate(shares)}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def together(found: Sequence[F], seconds: float) -> F:
    """What all shares found."""
    first, *others = found
    for other in others:
        first.add(other)
    first.seconds = seconds
    return first


# --- in a process of its own ----------------------------------------------------------------------------------------

_shared: dict[str, Any] = {}


def _begin(done: Any, stop: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever waits for this one ends it
    threading.Thread(target=_end_with_parent, daemon=True, name="ends with its parent").start()
    _shared.update(done=done, stop=stop)


def _end_with_parent() -> None:
    # A pool's process whose parent was killed would wait for its next task for ever.
    parent = multiprocessing.parent_process()
    assert parent is not None  # noqa: S101 - only children come here
    parent.join()
    os._exit(1)


def _share(job: Job[F], order: Order, share: frozenset[int], number: int) -> F:
    def progress(count: int) -> None:
        _shared["done"][number] = count
        if _shared["stop"].is_set():
            raise CommandError("another of these processes has failed")

    return asyncio.run(job(order, share, progress))
