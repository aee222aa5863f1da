"""``callyard demo``: a real caller, parked at a real Asterisk, put through the moment the conference starts.

It ends by itself: exit status 0 when every caller reached the right conference, 1 with the reason otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from callyard.demo.follow import Follower, call_ids, following
from callyard.demo.timeline import Timeline
from callyard.errors import CommandError
from callyard.options import JsonOption
from callyard.parts import cluster, prepare, sipp
from callyard.records import JournalEntry

app = typer.Typer(add_completion=False, help=__doc__)

LIMIT_SECONDS = 180
MUSIC_PACKETS = 25
"""Half a second of audio: 20 ms a packet."""
FIRST, SECOND = "49123", "45555"
CALLERS = ("+4930123401", "+4930123402", "+4930123403")


@app.command(name="demo")
def command(
    keep: Annotated[Path | None, typer.Option(help="Keep logs and Kafka's records in this new folder.")] = None,
    json: JsonOption = False,
) -> None:
    """Show the main job end to end, on an embedded Kafka, a real Asterisk and SIP callers (SIPp), in about a minute."""
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    timeline = Timeline(Console(soft_wrap=True, highlight=False), as_json=json)
    prepare.found()  # says what is missing before anything starts
    if keep is not None and keep.exists():
        raise CommandError(f"--keep {keep}: it exists already; name a folder that doesn't")
    folder = keep or Path(tempfile.mkdtemp(prefix="callyard-demo-"))
    try:
        asyncio.run(asyncio.wait_for(_play(folder, timeline), LIMIT_SECONDS))
    except (asyncio.TimeoutError, CommandError) as error:
        reason = str(error) or f"it took longer than {LIMIT_SECONDS} s"
        raise CommandError(f"{reason}\nLogs are in {folder}") from None
    if keep is None:
        shutil.rmtree(folder)


async def _play(folder: Path, timeline: Timeline) -> None:
    timeline.act("The parts come up, all on 127.0.0.1")
    async with contextlib.AsyncExitStack() as stack:
        running = await stack.enter_async_context(
            cluster.running(folder, say=lambda what, seconds: timeline.tell(f"{what} ({seconds:.1f} s)"))
        )
        follower = await stack.enter_async_context(following(running.settings))
        await Scenes(running, follower, timeline).play()
    timeline.act("Where to go next")
    timeline.prose(
        "  callyard up            runs the same workers for an Asterisk and nodes of your own (README.md)\n"
        "  docs/architecture.md   what just happened, and why no crash loses a caller\n"
        "  docs/gateway.md        the gateway's Asterisk    docs/node.md   the BigBlueButton nodes\n"
        "  make bench             how fast it is, beside its floor and beside polling"
    )


class Scenes:
    """The three acts. Every step that is told was seen: in Kafka, at the caller's or at the node's side."""

    def __init__(self, running: cluster.Cluster, follower: Follower, timeline: Timeline) -> None:
        self._cluster = running
        self._follower = follower
        self._timeline = timeline
        self._known: set[str] = set()

    async def play(self) -> None:
        tell, act = self._timeline.tell, self._timeline.act
        one, two = self._cluster.nodes
        async with contextlib.AsyncExitStack() as stack:
            act(f"1. A caller comes before conference {FIRST} has begun")
            first = await stack.enter_async_context(self._calls(CALLERS[0], FIRST))
            first_id = await self._waits(FIRST, first)
            opened = one.freeswitch.open(FIRST)
            tell(f"conference {FIRST} opens on {one.name}", opened.wall_ns / 1e9)
            await self._is_put_through(first_id, FIRST, one, opened.wall_ns / 1e9)

            act("2. A second caller comes while it runs")
            await stack.enter_async_context(self._calls(CALLERS[1], FIRST))
            _, entry = await self._parked(FIRST)
            tell(f"{_caller(entry.changes)} enters {FIRST}: it runs on {one.name}, so there is nothing to wait for")
            await self._is_put_through(call_ids(entry)[0], FIRST, one, None)

            act(f"3. A third caller comes for another conference, {SECOND}")
            third = await stack.enter_async_context(self._calls(CALLERS[2], SECOND))
            third_id = await self._waits(SECOND, third)
            opened = two.freeswitch.open(SECOND)
            tell(f"conference {SECOND} opens on {two.name}, the other node", opened.wall_ns / 1e9)
            await self._is_put_through(third_id, SECOND, two, opened.wall_ns / 1e9)
            self._check()
            tell("three callers, each in the conference whose number they entered")

    @asynccontextmanager
    async def _calls(self, number: str, conference: str) -> AsyncIterator[sipp.Sipp]:
        name = f"caller-{number[-1]}"
        folder = self._cluster.directory / name
        call = sipp.Call(number, f"{conference}#")
        async with sipp.calling(folder, self._cluster.entrance, [call], name=name) as caller:
            [answered] = await caller.saw("answered", timeout=20)
            self._timeline.tell("a caller dials the number; the gateway answers and asks", answered.at)
            yield caller

    async def _parked(self, conference: str) -> tuple[float, JournalEntry]:
        found = await self._follower.until(
            lambda: self._follower.parked(conference, self._known), f"a caller parked for {conference}"
        )
        self._known.update(call_ids(found[1]))
        return found

    async def _waits(self, conference: str, caller: sipp.Sipp) -> str:
        at, entry = await self._parked(conference)
        call_id = call_ids(entry)[0]
        self._timeline.tell(
            f"{_caller(entry.changes)} enters {conference}: no node has it, so the caller is parked", at
        )
        packets = await self._music()
        self._timeline.tell(f"the caller waits and hears music ({packets} packets of audio since)")
        if not caller.talking():
            raise CommandError("the waiting caller was hung up")
        return call_id

    async def _music(self) -> int:
        """Wait until audio has flown to the parked caller for a while; returns how many packets that were."""
        before = await self._audio_packets()
        while (now := await self._audio_packets()) < before + MUSIC_PACKETS:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.05)
        return now - before

    async def _audio_packets(self) -> int:
        return _sent(await self._cluster.gateway.cli("pjsip show channelstats"))

    async def _is_put_through(self, call_id: str, conference: str, node: cluster.Node, opened: float | None) -> None:
        step, follower = self._timeline.step, self._follower
        instructed, instruction = await follower.until(lambda: follower.instruction(call_id), "a dial instruction")
        connected, _ = await follower.until(lambda: follower.entry("connected", call_id), "the caller connected")
        calls = await node.sip.until(
            lambda events: any(e.what == "answered" and e.conference == conference for e in events),
            what=f"called for {conference}",
        )
        reached = [event for event in calls if event.what == "called" and event.conference == conference][-1].at
        if instruction.node_id != node.name or instruction.conference != conference:
            raise CommandError(f"the caller was sent to {instruction.node_id}, not to {node.name}")
        if opened is not None:
            registered = follower.registrations[conference]
            step(f"{node.name}'s hook has told Kafka", (registered - opened) * 1000)
            step(
                "the stream has decided: its instruction for the gateway is in Kafka", (instructed - registered) * 1000
            )
        step(f"the agent has redirected the call: Asterisk's INVITE is at {node.name}", (reached - instructed) * 1000)
        since = f", {(reached - opened) * 1000:.0f} ms after the conference opened" if opened is not None else ""
        self._timeline.tell(f"{node.name} answers: the caller is in {conference}{since}", max(reached, connected))

    def _check(self) -> None:
        expected = {"node-1": [FIRST, FIRST], "node-2": [SECOND]}
        for node in self._cluster.nodes:
            found = [event.conference for event in node.sip.talking()]
            if found != expected[node.name]:
                raise CommandError(f"{node.name} talks to callers of {found}, not of {expected[node.name]}")


def _caller(changes: tuple[dict[str, object], ...]) -> str:
    return next((str(change["caller"]) for change in changes if change.get("caller")), "the caller")


def _sent(stats: str) -> int:
    """The packets sent to all channels of ``pjsip show channelstats``: the fifth number from behind in each row.

    Only a waiting caller is sent any here: SIPp's nodes are silent.
    """
    rows = [line.split() for line in stats.splitlines() if re.match(r"\s*\S*\s+\S+\s+[0-9:]{8}\s", line)]
    return sum(int(row[-5]) for row in rows if len(row) > 6 and row[-5].isdigit())
