"""Carries out a plan: callers who come and go, conferences that open and close.

A node's SIP side answers whatever it is asked for, so that a leg that went astray is seen, not refused. What a real
FreeSWITCH would have refused, or ended with the conference, is hung up here a moment later (`Load.sweep`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from callyard.errors import CommandError
from callyard.parts import sipp
from tests.chaos.plan import WAVE_SECONDS, Caller, Meeting, Plan, Session
from tests.chaos.site import Node, Site
from tests.support.wait import until

ANSWER_SECONDS = 20.0
ENTERING_SECONDS = 1.0
"""A caller doesn't hang up in this time after the answer: SIPp's scenario isn't ready to be told yet."""
SWEEP_SECONDS = 0.5
SETTLE_SECONDS = 60.0
"""How long after the last fault every caller who still lives may take to get into his conference."""
T = TypeVar("T")


@dataclass
class Opening:
    """A conference that ran on a node; seconds since 1970-01-01 UTC."""

    conference: str
    node: str
    opened: float
    closed: float | None = None


@dataclass
class Party:
    """A caller and the SIPp that speaks for him."""

    caller: Caller
    sip: sipp.Sipp
    told_to_leave: float | None = None


class Load:
    """Callers and conferences of one run."""

    def __init__(self, site: Site, plan: Plan, stack: contextlib.AsyncExitStack) -> None:
        self._site = site
        self._plan = plan
        self._stack = stack
        self.parties: list[Party] = []
        self.openings: list[Opening] = []
        self._sweeping: dict[str, set[str]] = {node.name: set() for node in site.nodes}
        self._hanging_up: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """The plan, to its end."""
        began = time.monotonic()
        sweeping = asyncio.create_task(self._sweep_forever(), name="sweep")
        try:
            work: list[Awaitable[None]] = [
                _at(began + session.opens, lambda m=meeting, s=session: self._hold(began, m, s))  # type: ignore[misc]
                for meeting in self._plan.meetings
                for session in meeting.sessions
            ]
            work += [
                _at(began + at, lambda n=number, w=wave: self._wave(began, f"wave-{n}", w))  # type: ignore[misc]
                for number, (at, wave) in enumerate(self._plan.waves())
            ]
            await _all_or_first_error([*map(asyncio.ensure_future, work)], sweeping)
        finally:
            sweeping.cancel()
            await asyncio.gather(sweeping, return_exceptions=True)

    async def settle(self) -> list[str]:
        """After the last fault: open what has living callers; returns the numbers of who is not in his conference.

        Waits until nobody is left outside, at most `SETTLE_SECONDS`.
        """
        wanted = {party.caller.conference for party in self._living()}
        running = {opening.conference for opening in self.openings if opening.closed is None}
        for number, conference in enumerate(sorted(wanted - running)):
            self._open(self._site.nodes[number % len(self._site.nodes)], conference)
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            await self._sweep()
            # Who is told to leave by a planned end that is still under way isn't waited for.
            outside = sorted(self._outside())
            if not outside or time.monotonic() > deadline:
                return outside
            await asyncio.sleep(SWEEP_SECONDS)

    async def finish(self) -> None:
        """Everybody hangs up, then all conferences close."""
        living = self._living()
        for party in living:
            party.told_to_leave = time.time()
        by_sip: dict[int, tuple[sipp.Sipp, list[str]]] = {}
        for party in living:
            by_sip.setdefault(id(party.sip), (party.sip, []))[1].extend(_call_ids(party))
        await asyncio.gather(*(_hang_up(sip, ids) for sip, ids in by_sip.values()))
        for opening in [opening for opening in self.openings if opening.closed is None]:
            self._close(self._node(opening.node), opening)
        await self._sweep()
        await asyncio.gather(*self._hanging_up)

    def talking(self) -> int:
        """Callers who are in a conference now."""
        return sum(len(node.sip.talking()) for node in self._site.nodes)

    # --- conferences

    async def _hold(self, began: float, meeting: Meeting, session: Session) -> None:
        node = self._site.nodes[session.node]
        opening = self._open(node, meeting.conference)
        if session.closes is not None:
            await asyncio.sleep(max(0.0, began + session.closes - time.monotonic()))
            self._close(node, opening)

    def _open(self, node: Node, conference: str) -> Opening:
        written = node.freeswitch.open(conference)
        opening = Opening(conference, node.name, written.wall_ns / 1e9)
        self.openings.append(opening)
        return opening

    def _close(self, node: Node, opening: Opening) -> None:
        opening.closed = node.freeswitch.close(opening.conference).wall_ns / 1e9

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            await self._sweep()

    async def _sweep(self) -> None:
        """The nodes end the legs of conferences that don't run there."""
        for task in [task for task in self._hanging_up if task.done()]:
            self._hanging_up.discard(task)
            task.result()
        for node in self._site.nodes:
            running = {o.conference for o in self.openings if o.node == node.name and o.closed is None}
            known = self._sweeping[node.name]
            astray = [e.call_id for e in node.sip.talking() if e.conference not in running and e.call_id not in known]
            if astray:
                known.update(astray)
                self._hanging_up.add(asyncio.create_task(_hang_up(node.sip, astray), name=f"sweep {node.name}"))

    def _node(self, name: str) -> Node:
        return next(node for node in self._site.nodes if node.name == name)

    # --- callers

    async def _wave(self, began: float, name: str, wave: Sequence[Caller]) -> None:
        calls = [sipp.Call(caller.number, f"{caller.conference}#") for caller in wave]
        made = await self._stack.enter_async_context(
            sipp.calling(
                self._site.directory / "callers" / name,
                self._site.entrance,
                calls,
                name=name,
                rate=len(calls) / WAVE_SECONDS,
            )
        )
        parties = [Party(caller, made) for caller in wave]
        self.parties += parties
        await asyncio.gather(*(self._leave(began, party) for party in parties))

    async def _leave(self, began: float, party: Party) -> None:
        if party.caller.hangs_up is None:
            return
        await asyncio.sleep(max(0.0, began + party.caller.hangs_up - time.monotonic()))
        try:
            ids = await until(lambda: _call_ids(party), ANSWER_SECONDS, every=0.1)
        except AssertionError:
            return  # never answered: the verdict says so
        await asyncio.sleep(ENTERING_SECONDS)
        if set(ids) & party.sip.over():
            return
        party.told_to_leave = time.time()
        await _hang_up(party.sip, ids)

    def _living(self) -> list[Party]:
        return [
            party for party in self.parties if party.caller.number in {event.caller for event in party.sip.talking()}
        ]

    def _outside(self) -> set[str]:
        inside = {
            (event.caller, event.conference)
            for node in self._site.nodes
            for event in node.sip.talking()
            if any(o.closed is None and (o.node, o.conference) == (node.name, event.conference) for o in self.openings)
        }
        return {
            party.caller.number
            for party in self._living()
            if party.told_to_leave is None and (party.caller.number, party.caller.conference) not in inside
        }


def _call_ids(party: Party) -> list[str]:
    return [event.call_id for event in party.sip.events("answered") if event.caller == party.caller.number]


async def _hang_up(sip: sipp.Sipp, call_ids: Sequence[str]) -> None:
    if sip.running and set(call_ids) - sip.over():
        await sip.hang_up(*call_ids)


async def _at(moment: float, work: Callable[[], Awaitable[T]]) -> T:
    await asyncio.sleep(max(0.0, moment - time.monotonic()))
    return await work()


async def _all_or_first_error(work: Sequence[asyncio.Future[None]], beside: asyncio.Future[None]) -> None:
    waiting: set[asyncio.Future[None]] = {*work}
    try:
        while waiting:
            done, _ = await asyncio.wait({*waiting, beside}, return_when=asyncio.FIRST_COMPLETED)
            for one in done:
                one.result()
            if beside in done:
                raise CommandError("the sweep ended")
            waiting -= done
    finally:
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
