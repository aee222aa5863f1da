"""Callyard itself: callers parked at the gateway, conferences that open, and how soon each caller is dialled."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from bench import stages
from bench.callers import Caller, Observer, at_rate, parked
from bench.machine import Meter
from callyard.parts.cluster import Cluster

OPENINGS_A_SECOND = 10.0
FIRST_OPENING, HERD = 20_000, 30_000
"""Conference numbers: the shortest that there are, so that callers have entered them soon."""


async def openings(cluster: Cluster, observer: Observer, count: int) -> dict[str, Any]:
    """A conference for each of so many waiting callers, ten openings a second."""
    numbers = [str(FIRST_OPENING + number) for number in range(count)]
    return await _measure(cluster, observer, numbers, "openings")


async def herd(cluster: Cluster, observer: Observer, count: int) -> dict[str, Any]:
    """So many callers who all wait for one conference."""
    found = await _measure(cluster, observer, [str(HERD)] * count, "herd")
    return {**found, "dials a second": per_second(found.pop("dialled"))}


async def _measure(cluster: Cluster, observer: Observer, numbers: Sequence[str], name: str) -> dict[str, Any]:
    [node] = cluster.nodes
    opened: dict[str, int] = {}

    async def open_one(number: str) -> None:
        opened[number] = node.freeswitch.open(number).wall_ns

    async with parked(observer, cluster.entrance, cluster.directory / name, numbers) as callers:
        await stages.settled(cluster.settings)
        meter = Meter(processes(cluster))
        await at_rate(OPENINGS_A_SECOND, [partial(open_one, number) for number in _in_order(callers)])
        await observer.all_dialled(callers)
        busy = meter.read()
        journeys = await stages.journeys(cluster, observer, callers, opened)
    for number in opened:
        node.freeswitch.close(number)
    await stages.settled(cluster.settings)
    found: dict[str, Any] = {
        "total": stages.total(journeys),
        "stages": stages.spreads(journeys),
        "since opening": stages.since_opening(journeys),
        "busy": busy,
        "samples": [{name: (one[name] - one["opened"]) / 1e6 for name in stages.MILESTONES[1:]} for one in journeys],
    }
    if name == "herd":
        found["dialled"] = [one["dialled"] for one in journeys]
    return found


def processes(cluster: Cluster) -> dict[str, int]:
    """The processes of a cluster that run now, by name."""
    workers = {"stream": cluster.stream, "agent": cluster.agent, "hook": cluster.nodes[0].hook}
    running = {name: child.pid for name, child in workers.items() if child.running}
    return {"kafka": cluster.kafka.pid, "asterisk": cluster.gateway.pid, **running}


def _in_order(callers: Sequence[Caller]) -> list[str]:
    """Each number once, in the order in which its first caller was parked."""
    return list(dict.fromkeys(caller.conference for caller in callers))


def per_second(dialled_ns: Sequence[int]) -> float:
    """How many callers were dialled a second, from the first to the last."""
    seconds = (max(dialled_ns) - min(dialled_ns)) / 1e9
    return round((len(dialled_ns) - 1) / seconds, 1) if seconds else 0.0
