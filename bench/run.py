"""The composition of a run: which parts are measured, on which real parts, in which order."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from bench import audit, floor, hook, openings, polling, throughput
from bench.callers import Observer, observing
from callyard.parts import cluster

OPENINGS, HERD, FLOOR, AT_ONCE, POLLING, STREAM, AUDIT, HOOK = (
    "openings", "herd", "floor", "at-once", "polling", "stream", "audit", "hook",
)  # fmt: skip
PARTS = (OPENINGS, HERD, FLOOR, AT_ONCE, POLLING, STREAM, AUDIT, HOOK)
ON_CLUSTER = frozenset({OPENINGS, HERD, FLOOR, AT_ONCE, STREAM, AUDIT})
LOT_SIZE = 1000
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is measured, and how much of it."""

    parts: frozenset[str] = frozenset(PARTS)
    callers: int = 200
    polling_callers: int = 40
    inputs: int = 60_000
    audits: int = 3
    """Rounds of which the middle one counts."""
    events: int = 40_000
    remembered: int = 1_000_000
    """Events after which the hook's memory is looked at."""
    partitions: int = 12
    side_by_side: bool = False
    """Poll while the rest is measured: faster, and the figures are good for nothing but to see that all of it works."""
    limit_seconds: float = 300

    @classmethod
    def quick(cls, parts: frozenset[str]) -> Plan:
        """All of it in little time."""
        return cls(
            parts, callers=20, polling_callers=5, inputs=2_000, audits=1, events=4_000, remembered=40_000,
            side_by_side=True, limit_seconds=120,
        )  # fmt: skip


async def measure(plan: Plan, directory: Path, say: Say) -> dict[str, Any]:
    """Carry out a plan in a directory; returns what was found, by part.

    Raises `callyard.errors.CommandError` where a part doesn't come up or a caller isn't dialled, and
    `asyncio.TimeoutError` when all of it takes longer than the plan allows.
    """
    return await asyncio.wait_for(_measure(plan, directory, say), plan.limit_seconds)


async def _measure(plan: Plan, directory: Path, say: Say) -> dict[str, Any]:
    run = _Run(plan, directory, say)
    if plan.side_by_side and POLLING in plan.parts:
        beside = asyncio.create_task(run.poll(), name=POLLING)
        try:
            await run.on_cluster()
            await beside
        finally:
            beside.cancel()
            await asyncio.gather(beside, return_exceptions=True)
    else:
        await run.on_cluster()
        await run.poll()
    await run.part(HOOK, lambda: asyncio.to_thread(hook.figures, plan.events, plan.remembered))
    return {name: run.found[name] for name in PARTS if name in run.found}


class _Run:
    def __init__(self, plan: Plan, directory: Path, say: Say) -> None:
        self._plan = plan
        self._directory = directory
        self._say = say
        self.found: dict[str, Mapping[str, Any]] = {}

    async def part(self, name: str, work: Callable[[], Awaitable[Mapping[str, Any]]]) -> None:
        """Measure one part, if it is wanted."""
        if name not in self._plan.parts:
            return
        began = time.monotonic()
        self.found[name] = await work()
        self._say(f"{name}: measured in {time.monotonic() - began:.0f} s")

    async def poll(self) -> None:
        """The polling dialplan, on an Asterisk of its own."""
        await self.part(POLLING, lambda: polling.polling(self._directory / POLLING, self._plan.polling_callers))

    async def on_cluster(self) -> None:
        """All that needs Kafka and the gateway."""
        if not self._plan.parts & ON_CLUSTER:
            return
        async with contextlib.AsyncExitStack() as stack:
            running = await stack.enter_async_context(
                cluster.running(
                    self._directory / "cluster",
                    nodes=1,
                    partitions=self._plan.partitions,
                    say=lambda what, seconds: self._say(f"{what} ({seconds:.1f} s)"),
                    environment={"CALLYARD_LOG_LEVEL": "debug"},  # the agent tells when it redirected
                    lot_size=LOT_SIZE,
                )
            )
            observer = await stack.enter_async_context(observing(running.gateway.ami))
            await self._measure(running, observer)

    async def _measure(self, running: cluster.Cluster, observer: Observer) -> None:
        callers = self._plan.callers
        await self.part(OPENINGS, lambda: openings.openings(running, observer, callers))
        await self.part(HERD, lambda: openings.herd(running, observer, callers))
        # What follows is measured without the workers.
        for child in (*(node.hook for node in running.nodes), running.agent, running.stream):
            await child.stop()
        await self.part(FLOOR, lambda: floor.floor(running, observer, callers))
        await self.part(AT_ONCE, lambda: floor.at_once(running, observer, callers))
        if self._plan.parts & {STREAM, AUDIT}:  # the journal that the audit reads is the one that the stream wrote
            backlog = await throughput.stream(running.kafka, self._directory / STREAM, self._plan.inputs)
            await self.part(STREAM, lambda: _known(backlog))
            await self.part(AUDIT, lambda: audit.audit(throughput.backlog(running.kafka), self._plan.audits))


async def _known(found: Mapping[str, Any]) -> Mapping[str, Any]:
    return found
