"""Callers follow their meeting, and are told what can't be helped: the whole chain of real parts."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from callyard.parts import cluster, sipp
from callyard.parts.cluster import Cluster, Node
from callyard.records import JournalEntry
from tests.support.cluster import callers, conference_number, connected, decided, parked, talking
from tests.support.wait import until

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.asterisk,
    pytest.mark.timeout(120),
    pytest.mark.asyncio(loop_scope="session"),  # FreeSWITCH's doubles live in the loop of the fixture
]

KICK_SECONDS = 2


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def brief(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """A cluster whose decisions take little time."""
    policy = {
        "ATTEMPTS": "2",
        "BACKOFF_SECONDS": "0.2",
        "BACKOFF_MAX_SECONDS": "0.5",
        "KICK_SECONDS": str(KICK_SECONDS),
    }
    environment = {f"CALLYARD_POLICY_{name}": value for name, value in policy.items()}
    environment["CALLYARD_NODE_RENEW_SECONDS"] = "1"
    async with cluster.running(
        tmp_path_factory.mktemp("brief"), partitions=4, environment=environment, prompt_removed="beep",
        prompt_unreachable="beep",
    ) as running:  # fmt: skip
        yield running


@contextlib.asynccontextmanager
async def in_conference(brief: Cluster, node: Node, conference: str) -> AsyncIterator[sipp.Sipp]:
    """A caller who talks to this node."""
    node.freeswitch.open(conference)
    async with callers(brief, [conference]) as made:
        await connected(node, conference)
        await until(lambda: outcome(brief, conference, "connected"), what="the talk in the journal")
        yield made


async def hang_up(node: Node, conference: str, cause: int = sipp.NORMAL_CLEARING) -> None:
    """The node ends its talks of a conference."""
    legs = [event.call_id for event in node.sip.talking() if event.conference == conference]
    await node.sip.hang_up(*legs, cause=cause)


async def entries(brief: Cluster, conference: str) -> list[JournalEntry]:
    return [entry for entry in await decided(brief) if entry.conference == conference]


async def outcome(brief: Cluster, conference: str, wanted: str, count: int = 1) -> list[JournalEntry]:
    """The entries with this outcome, once there are so many; an empty list before."""
    found = [entry for entry in await entries(brief, conference) if entry.outcome == wanted]
    return found if len(found) >= count else []


async def left_for(brief: Cluster, conference: str, reason: str) -> bool:
    return any(reason in entry.why for entry in await outcome(brief, conference, "left"))


async def test_who_is_removed_is_told_so_and_not_put_back_in(brief: Cluster) -> None:
    conference, node = conference_number(), brief.nodes[0]
    async with in_conference(brief, node, conference) as made:
        await hang_up(node, conference)
        await made.saw("ended", timeout=20)
        await until(lambda: left_for(brief, conference, "removed"), what="the reason in the journal")
    assert len([e for e in node.sip.events("called") if e.conference == conference]) == 1


async def test_a_conference_that_ends_and_begins_elsewhere_is_followed(brief: Cluster) -> None:
    conference = conference_number()
    one, two = brief.nodes
    async with in_conference(brief, one, conference) as made:
        await hang_up(one, conference)
        one.freeswitch.close(conference)
        await until(lambda: outcome(brief, conference, "parked", 2), what="waiting again")
        await until(lambda: outcome(brief, conference, "time"), what="the time after which a removal is told")
        assert made.talking(), "nobody was removed"
        two.freeswitch.open(conference)
        await connected(two, conference)


async def test_a_conference_that_moves_first_and_ends_then_is_followed(brief: Cluster) -> None:
    conference = conference_number()
    one, two = brief.nodes
    async with in_conference(brief, one, conference):
        two.freeswitch.open(conference)
        await until(lambda: outcome(brief, conference, "registered", 2), what="registered at both")
        await hang_up(one, conference)
        one.freeswitch.close(conference)
        await connected(two, conference)


async def test_a_leg_that_is_lost_is_put_through_again(brief: Cluster) -> None:
    conference, node = conference_number(), brief.nodes[1]
    async with in_conference(brief, node, conference) as made:
        await hang_up(node, conference, cause=41)
        await until(lambda: talking(node).count(conference) == 1, what="back in the conference")
        assert len([e for e in node.sip.events("answered") if e.conference == conference]) == 2
        assert len(made.talking()) == 1


async def test_the_callers_of_a_freeswitch_that_dies_go_where_the_conference_begins_again(brief: Cluster) -> None:
    conference = conference_number()
    one, two = brief.nodes
    async with in_conference(brief, one, conference):
        one.freeswitch.kill()
        await hang_up(one, conference, cause=41)
        try:
            await until(lambda: outcome(brief, conference, "lost"), what="no longer registered")
            two.freeswitch.open(conference)
            await connected(two, conference)
        finally:
            await one.freeswitch.listen()
            await one.freeswitch.subscribers()


async def test_who_hangs_up_after_a_talk_is_not_dialled_again(brief: Cluster) -> None:
    conference, node = conference_number(), brief.nodes[0]
    async with in_conference(brief, node, conference) as made:
        await made.hang_up()
        await until(lambda: outcome(brief, conference, "left"), what="the end in the journal")
    assert await outcome(brief, conference, "parked", 2) == []


async def test_a_conference_that_cannot_be_reached_is_told_and_reached_later(brief: Cluster) -> None:
    conference = conference_number()
    one, two = brief.nodes
    await one.sip.stop()  # its SIP side is gone, and its conference goes on
    try:
        one.freeswitch.open(conference)
        async with callers(brief, [conference]) as made:
            await parked(brief, [conference])
            told = await until(lambda: told_entries(brief, conference), what="the caller told")
            assert len(told) == 1
            one.sip.start()
            await connected(one, conference)
            assert len(made.talking()) == 1
    finally:
        if not one.sip.running:
            one.sip.start()
        await one.sip.serving()
    assert talking(two).count(conference) == 0


async def told_entries(brief: Cluster, conference: str) -> list[JournalEntry]:
    return [entry for entry in await outcome(brief, conference, "dial-failed") if "told the caller" in entry.why]
