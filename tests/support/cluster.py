"""A whole cluster on real parts for tests (fixture ``whole``), and what is asked of it again and again."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio

from callyard.parts import cluster, sipp
from callyard.parts.cluster import Cluster, Node
from callyard.processes import Child
from callyard.records import JournalEntry
from tests.support.streams import decisions, journal
from tests.support.wait import until

NUMBERS = itertools.count(60001)
CALLERS = itertools.count(1)


def conference_number() -> str:
    """A conference number that no other test of this run has."""
    return str(next(NUMBERS))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def whole(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """Kafka, Asterisk, two nodes and all workers, for the tests of one file."""
    async with cluster.running(tmp_path_factory.mktemp("cluster"), partitions=4) as running:
        yield running


@asynccontextmanager
async def callers(whole: Cluster, conferences: Sequence[str]) -> AsyncIterator[sipp.Sipp]:
    """Callers who have entered these numbers, as far as they are heard; hung up at the end."""
    name = f"callers-{next(CALLERS)}"
    calls = [sipp.Call(f"+49301{number:06}", f"{conference}#") for number, conference in enumerate(conferences)]
    async with sipp.calling(whole.directory / name, whole.entrance, calls, name=name, rate=50) as made:
        await made.saw("answered", len(calls), timeout=20)
        yield made


async def parked(whole: Cluster, conferences: Sequence[str]) -> list[JournalEntry]:
    """Wait until the stream has decided that a caller is parked for each of these; returns the whole journal."""

    async def all_there() -> list[JournalEntry] | None:
        entries = await decided(whole)
        there = [entry.conference for entry in entries if entry.outcome == "parked"]
        return entries if all(there.count(c) >= list(conferences).count(c) for c in conferences) else None

    found = await until(all_there, what=f"callers parked for {conferences}")
    assert found is not None
    return found


async def decided(whole: Cluster) -> list[JournalEntry]:
    """The journal's decisions so far."""
    return decisions(await journal(whole.settings))


def talking(node: Node) -> list[str]:
    """The conferences that a node's callers are in, sorted."""
    return sorted(event.conference for event in node.sip.talking())


async def connected(node: Node, conference: str, count: int = 1, timeout: float = 20) -> None:
    """Wait until a node talks to so many callers of a conference."""
    await until(
        lambda: talking(node).count(conference) >= count,
        timeout,
        lambda: f"{count} callers in {conference} at {node.name}, which has {talking(node)}",
    )


@asynccontextmanager
async def stopped(child: Child) -> AsyncIterator[None]:
    """A worker killed for the length of the block, then started again and ready."""

    await child.kill()
    with contextlib.ExitStack() as stack:
        stack.callback(child.start)
        yield
    await child.ready(60)
