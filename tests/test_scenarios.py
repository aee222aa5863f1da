"""What operators have lived through, on the whole chain of real parts: each ends with the caller in the right place."""

from __future__ import annotations

import contextlib

import pytest

from callyard.parts.cluster import Cluster
from callyard.processes import Child
from tests.support.agent import logged
from tests.support.cluster import callers, conference_number, connected, decided, parked, stopped, talking
from tests.support.wait import until

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.asterisk,
    pytest.mark.timeout(120),
    pytest.mark.asyncio(loop_scope="session"),  # FreeSWITCH's doubles live in the loop of the fixture
]


async def test_ten_conferences_that_open_at_the_same_moment(whole: Cluster) -> None:
    conferences = [conference_number() for _ in range(10)]
    one, two = whole.nodes
    async with callers(whole, conferences):
        await parked(whole, conferences)
        for number, conference in enumerate(conferences):
            (one, two)[number % 2].freeswitch.open(conference)
        for number, conference in enumerate(conferences):
            await connected((one, two)[number % 2], conference)

    def nobody_talks() -> bool:
        return not {c for node in whole.nodes for c in talking(node)} & set(conferences)

    await until(nobody_talks, what="all hung up together")


async def test_a_conference_that_is_older_than_its_hook(whole: Cluster) -> None:
    conference, node = conference_number(), whole.nodes[0]
    async with stopped(node.hook):
        node.freeswitch.open(conference)
    async with callers(whole, [conference]):
        await connected(node, conference)


async def test_a_number_that_is_opened_again_and_again(whole: Cluster) -> None:
    conference, node = conference_number(), whole.nodes[0]
    async with callers(whole, [conference] * 2):
        await parked(whole, [conference] * 2)
        for _ in range(5):
            node.freeswitch.close(node.freeswitch.open(conference).instance)
        node.freeswitch.open(conference)
        await connected(node, conference, 2)


async def test_a_number_that_moves_to_the_other_node(whole: Cluster) -> None:
    conference = conference_number()
    one, two = whole.nodes
    one.freeswitch.open(conference)
    async with callers(whole, [conference]):
        await connected(one, conference)
        one.freeswitch.close(conference)
        two.freeswitch.open(conference)
        async with callers(whole, [conference]):
            await connected(two, conference)
            assert talking(one).count(conference) == 1, "who talks is left alone"


async def test_the_same_number_on_two_nodes_at_once_leads_to_the_newest(whole: Cluster) -> None:
    conference = conference_number()
    one, two = whole.nodes
    two.freeswitch.open(conference)
    async with callers(whole, [conference]):
        await connected(two, conference)
        one.freeswitch.open(conference)
        await until(lambda: _registrations(whole, conference, 2), what="both registered")
        async with callers(whole, [conference]):
            await connected(one, conference)


async def _registrations(whole: Cluster, conference: str, count: int) -> bool:
    entries = await decided(whole)
    return sum(e.conference == conference and e.outcome == "registered" for e in entries) >= count


async def test_a_freeswitch_that_is_killed_attracts_nobody(whole: Cluster) -> None:
    conference = conference_number()
    one, two = whole.nodes
    one.freeswitch.open(conference)
    await until(lambda: _registrations(whole, conference, 1), what="registered")
    one.freeswitch.kill()
    try:
        await until(lambda: _ended(whole, conference), what="no longer registered")
        async with callers(whole, [conference]):
            await parked(whole, [conference])
            two.freeswitch.open(conference)
            await connected(two, conference)
            assert conference not in talking(one)
    finally:
        await one.freeswitch.listen()
        await one.freeswitch.subscribers()


async def _ended(whole: Cluster, conference: str) -> bool:
    return any(e.conference == conference and e.outcome in {"lost", "ended"} for e in await decided(whole))


async def test_who_hangs_up_while_waiting_is_not_dialled(whole: Cluster) -> None:
    conference, node = conference_number(), whole.nodes[0]
    async with callers(whole, [conference]) as stays, callers(whole, [conference]) as leaves:
        await parked(whole, [conference] * 2)
        await leaves.hang_up()
        await until(lambda: _left(whole, conference), what="the end of the call in the journal")
        node.freeswitch.open(conference)
        await connected(node, conference)
        assert len(stays.talking()) == 1
    instructed = [i for e in await decided(whole) if e.conference == conference for i in e.instructions]
    assert len(instructed) == 1


async def _left(whole: Cluster, conference: str) -> bool:
    return any(e.conference == conference and e.outcome == "left" for e in await decided(whole))


@pytest.mark.parametrize("worker", ["agent", "stream", "hook"])
async def test_a_worker_that_is_dead_when_the_conference_opens(whole: Cluster, worker: str) -> None:
    conference, node = conference_number(), whole.nodes[1]
    child: Child = {"agent": whole.agent, "stream": whole.stream, "hook": node.hook}[worker]
    async with callers(whole, [conference]) as made:
        await parked(whole, [conference])
        async with stopped(child):
            node.freeswitch.open(conference)
        await connected(node, conference)
        assert len(made.talking()) == 1
        # Once, and not again by what the restarted worker reads back.
        calls = [event for event in node.sip.events("called") if event.conference == conference]
        assert len(calls) == 1


async def test_an_instruction_older_than_its_deadline_is_not_carried_out(whole: Cluster) -> None:
    # The conference opens and closes while the gateway has no agent. The instruction waits on the topic.
    conference = conference_number()
    one, two = whole.nodes
    async with callers(whole, [conference]) as made:
        await parked(whole, [conference])
        async with stopped(whole.agent):
            one.freeswitch.open(conference)
            await until(lambda: _registrations(whole, conference, 1), what="registered")
            one.freeswitch.close(conference)
            await until(lambda: _passed(whole, conference), what="the instruction's deadline in the journal")
        await until(lambda: _told_failed(whole, conference), what="the agent's word of it at the desk")
        refused = logged(whole.agent, "instruction not carried out")
        assert [fields["outcome"] for fields in refused] == ["expired"]
        two.freeswitch.open(conference)
        await connected(two, conference)
        assert len(made.talking()) == 1
    assert conference not in [event.conference for event in one.sip.events("called")]


async def _passed(whole: Cluster, conference: str) -> bool:
    entries = [entry for entry in await decided(whole) if entry.conference == conference]
    instructed = [number for number, entry in enumerate(entries) if entry.instructions]
    return bool(instructed) and any(entry.event_type == "deadline-passed" for entry in entries[instructed[0] :])


async def _told_failed(whole: Cluster, conference: str) -> bool:
    return any(e.conference == conference and e.event_type == "dial-failed" for e in await decided(whole))


async def test_a_caller_who_comes_while_the_stream_is_dead(whole: Cluster) -> None:
    conference, node = conference_number(), whole.nodes[0]
    async with contextlib.AsyncExitStack() as stack:
        async with stopped(whole.stream):
            node.freeswitch.open(conference)
            await stack.enter_async_context(callers(whole, [conference]))
            await _parked_at_asterisk(whole)
        await connected(node, conference)


async def _parked_at_asterisk(whole: Cluster) -> None:
    async def somebody() -> bool:
        return "Parking Space" in await whole.gateway.cli("parking show callyard")

    await until(somebody, what="a caller in the lot")
