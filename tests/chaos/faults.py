"""Injects a schedule into a site: one task for each fault, one fault at a time for each thing that it happens to."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tests.chaos.proxy import Mode, Proxy, State
from tests.chaos.schedule import Fault, Kind
from tests.chaos.site import Keeper, Site, restart_broker

RECOVERY_SECONDS = 12.0
"""A worker that was killed is left alone until it is ready again, but no longer than this."""

CONNECTION_SECONDS = 3.0
"""So long a fault of a connection waits for one to be there."""


@dataclass(frozen=True)
class Injected:
    """A fault as it happened; seconds since 1970-01-01 UTC."""

    fault: Fault
    began: float
    ended: float
    connections: int = 0
    """Of the kinds that concern connections: how many were open when it began."""


class Injector:
    """Carries out faults."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._lanes: dict[str, asyncio.Lock] = {}
        self.injected: list[Injected] = []

    async def run(self, faults: Sequence[Fault]) -> None:
        """Inject all of them, each at its time or once its target is free; returns when the last one is over."""
        began = time.monotonic()
        tasks: list[asyncio.Task[None]] = []
        try:
            for fault in faults:
                await asyncio.sleep(max(0.0, began + fault.at - time.monotonic()))
                for failed in [task for task in tasks if task.done() and task.exception()]:
                    failed.result()
                lane = self._lanes.setdefault(fault.lane, asyncio.Lock())
                tasks.append(asyncio.create_task(self._one(fault, lane), name=f"{fault.kind.value}"))
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _one(self, fault: Fault, lane: asyncio.Lock) -> None:
        # A lock serves in the order of asking, so that the order within a lane is the schedule's.
        async with lane:
            began = time.time()
            connections = await self._inject(fault)
            self.injected.append(Injected(fault, began, time.time(), connections))

    async def _inject(self, fault: Fault) -> int:
        site, number = self._site, fault.target
        if fault.kind is Kind.KILL_BROKER:
            await site.kafka.kill()
            await asyncio.sleep(fault.seconds)
            await restart_broker(site.kafka)
            return 0
        if fault.kind is Kind.FREEZE_STREAM:
            await _freeze(site.streams[number], fault.seconds)
            return 0
        killed = {
            Kind.KILL_STREAM: site.streams,
            Kind.KILL_AGENT: site.agents,
            Kind.KILL_HOOK: [node.hook for node in site.nodes],
        }.get(fault.kind)
        if killed is not None:
            await _kill(killed[number], fault.seconds)
            return 0
        return await _disturb(self._proxy(fault), fault)

    def _proxy(self, fault: Fault) -> Proxy:
        what = fault.kind.value.split("-")[1]
        proxies = {
            "stream": self._site.stream_kafka,
            "agent": self._site.agent_kafka,
            "ami": self._site.ami,
            "esl": [node.esl for node in self._site.nodes],
        }[what]
        return proxies[fault.target]


async def _kill(keeper: Keeper, down_seconds: float) -> None:
    await keeper.kill(down_seconds)
    await asyncio.sleep(down_seconds)
    waiting = asyncio.create_task(keeper.ready())
    # Where Kafka is away at that moment, readiness is not to be waited for.
    await asyncio.wait([waiting], timeout=RECOVERY_SECONDS)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def _freeze(keeper: Keeper, seconds: float) -> None:
    await keeper.freeze()
    try:
        await asyncio.sleep(seconds)
    finally:
        keeper.thaw()


async def _disturb(proxy: Proxy, fault: Fault) -> int:
    with contextlib.suppress(asyncio.TimeoutError):  # then it happens to connections to come
        await asyncio.wait_for(proxy.in_use(), CONNECTION_SECONDS)
    connections = proxy.connections
    if fault.kind in {Kind.CUT_AMI, Kind.CUT_ESL}:
        proxy.cut()
        return connections
    mode = {
        Kind.HOLD_STREAM: Mode.HOLD,
        Kind.DELAY_AMI: Mode.DELAY,
        Kind.DELAY_ESL: Mode.DELAY,
        Kind.SPLIT_AMI: Mode.SPLIT,
        Kind.SPLIT_ESL: Mode.SPLIT,
    }.get(fault.kind, Mode.DROP)
    proxy.switch(State(mode, fault.delay_seconds, fault.refuse))
    try:
        await asyncio.sleep(fault.seconds)
    finally:
        proxy.heal()
    return connections
