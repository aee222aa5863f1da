"""A bus that is down for three leases kills nobody who is alive, and forgets nobody who waits.

The whole chain on real parts, with leases of three seconds. The broker is killed and keeps its data. Callers talk, wait
for a conference that opens later, wait beside one that opens meanwhile, come meanwhile, and hang up meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from pathlib import Path

import pytest

from callyard.parts import cluster
from callyard.parts.cluster import Cluster
from callyard.records import JournalEntry
from tests.support.cluster import callers, conference_number, connected, decided, parked, talking
from tests.support.wait import until

pytestmark = [pytest.mark.kafka, pytest.mark.asterisk, pytest.mark.timeout(180)]

LEASE_SECONDS = 3.0
SETTINGS = {
    "CALLYARD_POLICY_REGISTRATION_LEASE_SECONDS": f"{LEASE_SECONDS:g}",
    "CALLYARD_POLICY_CALL_LEASE_SECONDS": f"{LEASE_SECONDS:g}",
    "CALLYARD_GATEWAY_RENEW_SECONDS": f"{LEASE_SECONDS / 3:g}",
    "CALLYARD_NODE_RENEW_SECONDS": f"{LEASE_SECONDS / 3:g}",
    "CALLYARD_KAFKA_REQUEST_TIMEOUT_MS": "3000",
}


@pytest.mark.parametrize("renewals", ["at-once", "late"])
async def test_a_bus_that_was_down_for_three_leases_kills_nobody_and_forgets_nobody(
    tmp_path: Path, renewals: str
) -> None:
    """``late``: agent and hook reach the bus again only after the stream has believed everybody dead."""
    talks, later, meanwhile, gone = (conference_number() for _ in range(4))
    async with (
        cluster.running(tmp_path, nodes=1, partitions=4, environment=SETTINGS) as whole,
        contextlib.AsyncExitStack() as stack,
    ):
        [node] = whole.nodes
        node.freeswitch.open(talks)
        speakers = await stack.enter_async_context(callers(whole, [talks] * 2))
        await connected(node, talks, 2)
        waiting = await stack.enter_async_context(callers(whole, [later, meanwhile]))
        leaves = await stack.enter_async_context(callers(whole, [gone]))
        await parked(whole, [later, meanwhile, gone])
        await whole.kafka.kill()
        await asyncio.sleep(1.5 * LEASE_SECONDS)  # time itself is what is tried here
        node.freeswitch.open(meanwhile)
        newcomer = await stack.enter_async_context(callers(whole, [talks]))
        await leaves.hang_up()
        await asyncio.sleep(1.5 * LEASE_SECONDS)
        assert len(speakers.talking()) == 2
        late = [whole.agent, node.hook] if renewals == "late" else []
        for child in late:
            child.send_signal(signal.SIGSTOP)
            stack.callback(child.send_signal, signal.SIGCONT)
        await whole.kafka.start()
        supervisor = asyncio.create_task(supervise(whole))
        stack.callback(supervisor.cancel)
        if late:
            for conference in (talks, later, meanwhile, gone):
                await until(lambda number=conference: lapsed(whole, number), 60, "everybody believed dead")
        for child in late:
            child.send_signal(signal.SIGCONT)

        # The waiting one whose conference opened meanwhile, and the one who came meanwhile.
        await connected(node, meanwhile, timeout=60)
        await connected(node, talks, 3, timeout=60)
        # Nobody opened these; now one opens, and the other's caller is long gone.
        assert {later, gone}.isdisjoint(talking(node))
        await until(lambda: lives(whole, later), 60, "the waiting caller believed alive")
        node.freeswitch.open(later)
        node.freeswitch.open(gone)
        await connected(node, later)
        await until(lambda: outcome(whole, gone, "registered"), what="the last conference registered")

        assert talking(node) == sorted([talks] * 3 + [meanwhile, later])
        assert (len(speakers.talking()), len(waiting.talking()), len(newcomer.talking())) == (2, 2, 1)
        assert sorted(event.conference for event in node.sip.events("called")) == talking(node), "nobody twice"
        for child in (whole.agent, node.hook):
            assert child.running, f"{child.name} {child.ended()}"


async def supervise(whole: Cluster) -> None:
    """The supervisor's part: a stream worker that cannot know what it wrote ends, and is started again."""
    while True:
        await whole.stream.wait()
        whole.stream.start()


async def lives(whole: Cluster, conference: str) -> bool:
    """Whether what the desk heard last of a conference's caller is that it lives."""
    outcomes = [entry.outcome for entry in await entries_of(whole, conference)]
    return outcomes[-1] in {"renewed", "revived", "parked"}


async def lapsed(whole: Cluster, conference: str) -> bool:
    return any("calls lapsed" in entry.why for entry in await entries_of(whole, conference))


async def outcome(whole: Cluster, conference: str, wanted: str) -> bool:
    return wanted in {entry.outcome for entry in await entries_of(whole, conference)}


async def entries_of(whole: Cluster, conference: str) -> list[JournalEntry]:
    return [entry for entry in await decided(whole) if entry.conference == conference]
