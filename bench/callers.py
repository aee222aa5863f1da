"""Callers who are parked at the gateway, and when each of them was dialled, as an observer at Asterisk sees it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from bench.ami import Ami, Message, connected
from callyard.parts import sipp
from callyard.settings import AmiSettings

CALLS_A_SECOND = 20.0
ENTRY_SECONDS = 20.0
"""How long a caller may take to enter the number; more than the dialplan's ten seconds for the next digit."""
DIAL_SECONDS = 20.0


class Caller(NamedTuple):
    """A parked caller."""

    conference: str
    uniqueid: str
    channel: str


class Observer:
    """What happened to the callers of one Asterisk. Times are nanoseconds since 1970-01-01 UTC."""

    def __init__(self) -> None:
        self.parked: dict[str, Caller] = {}
        self.dialled: dict[str, int] = {}
        """When the first DialBegin of each caller arrived, by the caller's uniqueid."""
        self.hung_up: set[str] = set()
        self.ami: Ami

    def take(self, message: Message) -> None:
        """Note one event."""
        kind = message["Event"]
        if kind == "DialBegin":
            self.dialled.setdefault(message["Uniqueid"], message.at_ns)
        elif kind == "ParkedCall":
            uniqueid = message["ParkeeUniqueid"]
            conference = message.variables.get("CALLYARD_CONFERENCE", "")
            self.parked.setdefault(uniqueid, Caller(conference, uniqueid, message["ParkeeChannel"]))
        elif kind == "Hangup":
            self.hung_up.add(message["Uniqueid"])

    async def all_dialled(self, callers: Sequence[Caller]) -> None:
        """Wait until each of these has been dialled. Raises `CommandError` when one isn't."""

        def missing() -> list[Caller]:
            return [caller for caller in callers if caller.uniqueid not in self.dialled]

        await self.ami.until(
            lambda: not missing(), DIAL_SECONDS,
            lambda: f"{len(missing())} of {len(callers)} callers were not dialled, the first of them {missing()[0]}",
        )  # fmt: skip


@asynccontextmanager
async def observing(settings: AmiSettings) -> AsyncIterator[Observer]:
    """An observer of the gateway with this manager interface."""
    observer = Observer()
    async with connected(settings, observer.take) as observer.ami:
        yield observer


@asynccontextmanager
async def parked(
    observer: Observer, entrance: tuple[str, int], directory: Path, conferences: Sequence[str]
) -> AsyncIterator[list[Caller]]:
    """One caller parked for each of these numbers (which may repeat); they hang up at the end, which is awaited."""
    before = set(observer.parked)
    calls = [sipp.Call(f"+4930{100_000 + number}", f"{name}#") for number, name in enumerate(conferences)]

    def new() -> list[Caller]:
        return [caller for caller in observer.parked.values() if caller.uniqueid not in before]

    async with sipp.calling(directory, entrance, calls, rate=CALLS_A_SECOND):
        await observer.ami.until(
            lambda: len(new()) >= len(calls), len(calls) / CALLS_A_SECOND + ENTRY_SECONDS,
            lambda: f"{len(new())} of {len(calls)} callers were parked; SIPp's account is in {directory}",
        )  # fmt: skip
        callers = new()
        yield callers
    gone = {caller.uniqueid for caller in callers}
    await observer.ami.until(lambda: gone <= observer.hung_up, 20, lambda: "all callers hung up")


async def at_rate(a_second: float, work: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """Do each piece of work at its own moment, whether or not those before it have ended: so many a second."""
    began = time.monotonic()
    under_way = []
    for number, piece in enumerate(work):
        await asyncio.sleep(max(0.0, began + number / a_second - time.monotonic()))
        under_way.append(asyncio.ensure_future(piece()))
    await asyncio.gather(*under_way)
