"""Keeps the mirror true: one session with Asterisk after the other, each begun with a snapshot.

Nothing here decides. Events and snapshots go into the mirror in the order in which Asterisk wrote them, and what the
mirror makes of them goes to the publisher. While there is no session that has been snapshotted, the mirror is not
believed: no call is renewed and no instruction carried out.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import orjson
import structlog
from prometheus_client import Counter, Gauge

from agents import ami
from agents.calls import Phase
from agents.messages import (
    VARIABLES,
    Channel,
    DialBegan,
    Parked,
    Starred,
    Unreadable,
    read_channel,
    read_event,
    read_parked,
)  # fmt: skip
from agents.mirror import Mirror, Snapshot
from agents.publish import Publisher
from callyard.renewals import Renewals
from callyard.settings import AmiSettings, GatewaySettings

E = TypeVar("E", Parked, Channel)

log = structlog.get_logger(__name__)

FIRST_RETRY_SECONDS = 0.25

EVENTS = Counter("callyard_agent_ami_events", "Events read from Asterisk that concern callers.", ["event"])
SESSIONS = Counter("callyard_agent_ami_sessions", "Sessions with Asterisk's manager interface.", ["outcome"])
CALLS = Gauge("callyard_agent_calls", "Live calls at this gateway, by what they do.", ["phase"])


class Gateway:
    """The connection between one Asterisk and the mirror."""

    def __init__(self, settings: AmiSettings, gateway: GatewaySettings, mirror: Mirror, publisher: Publisher) -> None:
        self._settings = settings
        self._gateway = gateway
        self._mirror = mirror
        self._publisher = publisher
        self.session: ami.Session | None = None
        """The present session, once its first snapshot is in the mirror; None: the mirror isn't to be believed."""
        self.on_star: Callable[[Starred], None] | None = None
        """Called when a caller pressed ``*``."""
        self.synced = asyncio.Event()
        """Set as long as there is such a session."""
        self._snapshot_wanted = asyncio.Event()
        self._began = False
        self._told: set[str] = set()
        for phase in Phase:
            CALLS.labels(phase.name.lower()).set_function(partial(self._count, phase))

    def _count(self, phase: Phase) -> int:
        return sum(call.phase is phase for call in self._mirror.calls.values())

    def want_snapshot(self) -> None:
        """Take a snapshot now: something is in doubt."""
        self._snapshot_wanted.set()

    def break_off(self) -> None:
        """End the present session at once: what is written and not yet sent never reaches Asterisk."""
        if self.session is not None:
            self.session.abort()

    async def run(self) -> None:
        """Stay connected until cancelled.

        Raises `ami.AmiRefusedError` when Asterisk refuses the first session: then a setting is wrong. Later it may be
        starting anew, with its users not loaded yet.
        """
        retry = FIRST_RETRY_SECONDS
        while True:
            try:
                await self._attend(await ami.connect(self._settings))
            except ami.AmiError as error:
                if isinstance(error, ami.AmiRefusedError) and not self._began:
                    raise
                SESSIONS.labels("lost" if self.synced.is_set() else "failed").inc()
                if self.synced.is_set():
                    retry = FIRST_RETRY_SECONDS
                self._tell(str(error))
            finally:
                self.session = None
                self.synced.clear()
            # Equal jitter: all agents of a restarted gateway must not come at the same moment.
            await asyncio.sleep(retry * random.uniform(0.5, 1))  # noqa: S311 - jitter
            retry = min(retry * 2, self._settings.reconnect_max_seconds)

    def _tell(self, why: str) -> None:
        # An outage is told once, in each of its forms.
        if why not in self._told:
            self._told.add(why)
            log.error("no session with Asterisk; trying again", why=why)

    async def _attend(self, session: ami.Session) -> None:
        snapshots = asyncio.create_task(self._snapshots(session), name="snapshots")
        # Without snapshots a session is of no use, so it ends with them.
        snapshots.add_done_callback(lambda _: session.close())
        try:
            await self._follow(session)
        finally:
            session.close()
            snapshots.cancel()
            [ended] = await asyncio.gather(snapshots, return_exceptions=True)
            if isinstance(ended, Exception) and not isinstance(ended, ami.AmiError):
                raise ended

    async def _follow(self, session: ami.Session) -> None:
        parked: dict[str, Parked] = {}
        while True:
            item = await session.next()
            if isinstance(item, ami.Event):
                self._event(item.headers)
            elif item.error is not None:
                raise ami.AmiError(
                    f"Asterisk does not list {item.action} ({item.error}): check that res_parking is loaded and"
                    " that the manager user has write=call"
                )
            elif item.action == "ParkedCalls":
                parked = {entry.uniqueid: entry for entry in self._entries(item, read_parked)}
            else:
                self._reconcile(session, Snapshot(parked, tuple(self._entries(item, read_channel))))

    async def _snapshots(self, session: ami.Session) -> None:
        # The lot is listed before the channels: whoever is in the lot and then no longer parked, has moved on.
        while session.lost is None:
            self._snapshot_wanted.clear()
            session.request_list("ParkedCalls", {})
            session.request_list("Status", {"Variables": ",".join(VARIABLES)})
            try:
                await asyncio.wait_for(self._snapshot_wanted.wait(), self._gateway.snapshot_seconds)
            except asyncio.TimeoutError:
                continue

    def _event(self, headers: ami.Headers) -> None:
        event = read_event(headers)
        if event is None:
            return
        if isinstance(event, Unreadable):
            self._set_aside(event, headers)
            return
        EVENTS.labels(type(event).__name__).inc()
        now_ns = time.time_ns()
        self._publisher.say(self._mirror.apply(event, now_ns // 1_000_000))
        if isinstance(event, Starred) and self.on_star is not None:
            self.on_star(event)
        if isinstance(event, (Parked, DialBegan)):
            log.debug(
                "call seen", seen=type(event).__name__, call_id=self._mirror.reports.call_id(event.uniqueid),
                conference=event.marks.conference, stay=event.marks.stay, attempt=event.marks.mark, applied_ns=now_ns,
            )  # fmt: skip

    def _reconcile(self, session: ami.Session, snapshot: Snapshot) -> None:
        renewed = self.session is not session
        records = self._mirror.reconcile(snapshot, renewed=renewed, now_ms=time.time_ns() // 1_000_000)
        self._publisher.say(records)
        if renewed:
            SESSIONS.labels("synced").inc()
            log.info("snapshot taken", calls=len(self._mirror.calls), parked=len(snapshot.parked))
            self.session = session
            self.synced.set()
            self._began = True
            self._told.clear()
            # Whatever was published while events were lost may be wrong by now.
            self._publisher.announce()
        elif records:
            log.info("the snapshot told what no event did", records=[record.type for record in records])

    def _entries(self, listing: ami.Listing, read: Callable[[ami.Headers], E | Unreadable | None]) -> Iterator[E]:
        for headers in listing.entries:
            entry = read(headers)
            if isinstance(entry, Unreadable):
                self._set_aside(entry, headers)
            elif entry is not None:
                yield entry

    def _set_aside(self, unreadable: Unreadable, headers: ami.Headers) -> None:
        log.warning("a message of Asterisk cannot be understood", why=unreadable.reason)
        self._publisher.reject("ami", unreadable.reason, orjson.dumps(dict(headers)))

    async def renew(self) -> None:
        """Renew each live call once in `GatewaySettings.renew_seconds`, spread over that time, until cancelled."""
        renewals = Renewals(self._gateway.renew_seconds)
        while True:
            await asyncio.sleep(renewals.tick_seconds)
            if not self.synced.is_set():
                continue
            for uniqueid in renewals.due(self._mirror.calls, time.monotonic()):
                alive = self._mirror.alive(uniqueid)
                if alive is not None:
                    self._publisher.say([alive])
