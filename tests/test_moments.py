"""What happens in awkward moments, on the whole chain of real parts. The list with all outcomes: docs/cases.md."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from callyard.parts import sipp
from callyard.parts.cluster import Cluster
from callyard.records import ConferenceRegistered, ConferenceUnregistered, DialInstruction, JournalEntry, Source
from callyard.topics import topics
from tests.support import kafka as on_kafka
from tests.support.cluster import callers, conference_number, connected, decided, parked
from tests.support.streams import instructions
from tests.support.wait import until

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.asterisk,
    pytest.mark.timeout(120),
    pytest.mark.asyncio(loop_scope="session"),  # FreeSWITCH's doubles live in the loop of the fixture
]

NODE = "other"


@asynccontextmanager
async def other_node(whole: Cluster, conference: str, behaviour: str) -> AsyncIterator[sipp.Node]:
    """A node that answers calls in its own way, with this conference registered for its hook."""
    async with sipp.node(whole.directory / f"{NODE}-{conference}", name=NODE, behaviour=behaviour) as node:
        record = ConferenceRegistered(
            sender=f"hook:{NODE}", conference=conference, source=Source.FREESWITCH, instance_id=conference,
            node_id=NODE, sip_uri=node.uri(conference),
        )  # fmt: skip
        await on_kafka.send(whole.settings, topics(whole.settings).registrations.name, (conference, record))
        yield node


async def close(whole: Cluster, conference: str) -> None:
    """The end of that node's conference."""
    record = ConferenceUnregistered(
        sender=f"hook:{NODE}", conference=conference, source=Source.FREESWITCH, instance_id=conference, node_id=NODE
    )
    await on_kafka.send(whole.settings, topics(whole.settings).registrations.name, (conference, record))


async def outcomes(whole: Cluster, conference: str, wanted: str) -> list[JournalEntry]:
    """The decisions about a conference with this outcome."""
    return [e for e in await decided(whole) if (e.conference, e.outcome) == (conference, wanted)]


async def instructed(whole: Cluster, conference: str) -> list[DialInstruction]:
    """The dials that were instructed for a conference."""
    found = [i for i in await instructions(whole.settings) if i.conference == conference]
    return [i for i in found if isinstance(i, DialInstruction)]


async def test_who_hangs_up_while_the_node_rings(whole: Cluster) -> None:
    conference = conference_number()
    async with other_node(whole, conference, sipp.SILENT) as node, callers(whole, [conference]) as made:
        await node.saw("called")
        await made.hang_up()
        await node.saw("cancelled")
        await until(lambda: outcomes(whole, conference, "left"), what="the end of the call in the journal")
    assert len(await instructed(whole, conference)) == 1


async def test_who_hangs_up_while_the_instruction_is_on_its_way(whole: Cluster) -> None:
    conference, node = conference_number(), whole.nodes[0]
    async with callers(whole, [conference]) as made:
        await parked(whole, [conference])
        whole.agent.send_signal(signal.SIGSTOP)
        try:
            node.freeswitch.open(conference)
            await until(lambda: instructed(whole, conference), what="the instruction")
            await made.hang_up()
        finally:
            whole.agent.send_signal(signal.SIGCONT)
        await until(lambda: outcomes(whole, conference, "left"), what="the end of the call in the journal")
    assert conference not in [event.conference for event in node.sip.events("called")]


async def test_who_hangs_up_after_a_talk_before_it_is_known_what_follows(whole: Cluster) -> None:
    conference, node = conference_number(), whole.nodes[0]
    node.freeswitch.open(conference)
    async with callers(whole, [conference]) as made:
        await connected(node, conference)
        await node.sip.hang_up(*[e.call_id for e in node.sip.talking() if e.conference == conference])
        await until(lambda: _two(whole, conference, "parked"), what="the stay after the talk")
        await made.hang_up()
        await until(lambda: _two(whole, conference, "left"), what="the end of the call in the journal")
    assert len(await instructed(whole, conference)) == 1


async def _two(whole: Cluster, conference: str, wanted: str) -> bool:
    return len(await outcomes(whole, conference, wanted)) == 2


async def test_a_conference_that_closes_while_the_instruction_is_on_its_way(whole: Cluster) -> None:
    conference, second = conference_number(), whole.nodes[1]
    async with callers(whole, [conference]) as made:
        await parked(whole, [conference])
        whole.agent.send_signal(signal.SIGSTOP)
        try:
            async with other_node(whole, conference, "404 Not Found") as node:
                await until(lambda: instructed(whole, conference), what="the instruction")
                await close(whole, conference)
                await until(lambda: outcomes(whole, conference, "ended"), what="the end in the journal")
                whole.agent.send_signal(signal.SIGCONT)
                await node.saw("called")
                [entry] = await until(lambda: outcomes(whole, conference, "dial-failed"), what="the failed dial")
                assert "not-found" in entry.why
        finally:
            whole.agent.send_signal(signal.SIGCONT)
        assert len(made.talking()) == 1, "the caller waits on"
        second.freeswitch.open(conference)
        await connected(second, conference)


async def test_two_callers_of_one_number_are_two_calls(whole: Cluster) -> None:
    conference, node = conference_number(), whole.nodes[0]
    calls = [sipp.Call("+4930999999", f"{conference}#")] * 2
    async with sipp.calling(whole.directory / "twins", whole.entrance, calls, name="twins") as made:
        await parked(whole, [conference] * 2)
        node.freeswitch.open(conference)
        await connected(node, conference, 2)
        first = made.talking()[0]
        await made.hang_up(first.call_id)
        await until(lambda: outcomes(whole, conference, "left"), what="the first one's end in the journal")
        assert len(made.talking()) == 1, "the other talks on"
    assert len({one.call_id for one in await instructed(whole, conference)}) == 2
