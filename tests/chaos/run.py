"""The composition of a run: what is started, in which order, and what ends it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.chaos import gather, site
from tests.chaos.facts import Facts
from tests.chaos.faults import Injected, Injector
from tests.chaos.load import Load
from tests.chaos.plan import plan
from tests.chaos.schedule import USUAL, Fault, Kind, as_json, schedule
from tests.chaos.verdict import Verdict, judge

Say = Callable[[str], None]
TAIL_SECONDS = 15.0
"""Callers go on coming so long after the last fault is due."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What is done in a run; with the seed all of it is determined but the machine's own timing."""

    seed: int
    counts: Mapping[Kind, int]
    mean_seconds: float = 2.0
    callers: int = 600
    nodes: int = 3

    @classmethod
    def of(cls, seed: int, each: int, only: frozenset[Kind] = frozenset(), **more: Any) -> Run:
        """``each`` faults of each usual kind, or of these kinds ``only``; ``more``: other fields."""
        run = cls(seed, dict.fromkeys(only or USUAL, each))
        return dataclasses.replace(run, **more)

    @property
    def faults(self) -> tuple[Fault, ...]:
        return schedule(self.seed, self.counts, self.mean_seconds, self.nodes)

    @property
    def seconds(self) -> float:
        """How long callers come."""
        return self.mean_seconds * sum(self.counts.values()) + TAIL_SECONDS


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of a run."""

    run: Run
    seconds: float
    injected: tuple[Injected, ...]
    ended_alone: Mapping[str, int]
    facts: Facts
    verdict: Verdict


async def execute(run: Run, directory: Path, say: Say) -> Result:
    """Carry out a run in a directory and judge it.

    Raises `callyard.errors.CommandError` where a part doesn't come up, or doesn't come back after the last fault.
    """
    began = time.monotonic()
    directory = directory.absolute()
    (directory / "schedule.jsonl").write_bytes(as_json(run.faults))
    intended = plan(run.seed, run.callers, run.seconds, run.nodes)
    async with site.running(directory, run.nodes, run.seed) as there, contextlib.AsyncExitStack() as callers:
        say(f"{len(there.keepers)} workers run, {run.nodes} nodes; {len(run.faults)} faults in {run.seconds:.0f} s")
        seen = await callers.enter_async_context(gather.dials(there.gateway.ami))
        load, injector = Load(there, intended, callers), Injector(there)
        working = asyncio.create_task(load.run(), name="load")
        failing = asyncio.create_task(injector.run(run.faults), name="faults")
        telling = asyncio.create_task(_tell(load, injector, len(run.faults), say), name="tell")
        try:
            await _both(working, failing)
        finally:
            for task in (working, failing, telling):
                task.cancel()
            await asyncio.gather(working, failing, telling, return_exceptions=True)
        say(f"{len(injector.injected)} faults injected; healing")
        await there.healed()
        say("all is ready again; everybody who waits shall get in")
        outside = await load.settle()
        say(f"{len(outside)} callers outside; everybody leaves")
        await load.finish()
        say("everybody has left")
        await gather.quiet(there)
        alone = there.ended_alone()
        say("all is told; the workers end")
        await asyncio.gather(*(keeper.end() for keeper in there.keepers))
        facts = await gather.gather(there, load, seen, outside)
    return Result(run, time.monotonic() - began, tuple(injector.injected), alone, facts, judge(facts))


async def _tell(load: Load, injector: Injector, faults: int, say: Say) -> None:
    while True:
        await asyncio.sleep(15)
        say(f"{len(injector.injected)} of {faults} faults, {len(load.parties)} callers came, {load.talking()} talk")


async def _both(*tasks: asyncio.Task[None]) -> None:
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    for task in done:
        task.result()
