"""The hook: follows one node's FreeSWITCH and keeps Kafka told of its conferences. Composed here, and only here.

What it must never do: keep a registration of a conference that can't be reached, drop one that runs because of a short
cut of the connection, or wait for Kafka before it reads FreeSWITCH.

* A connection subscribes first and asks for the snapshot then, so that nothing falls between the two.
* When the connection breaks, the hook connects again at once. Only if that fails is nothing vouched for any more, and
  all registrations end (`lost`); if it works, the snapshot says what ended meanwhile.
* When the hook itself ends, running conferences stay registered: a restart is no reason to refuse callers. If it
  doesn't come back, the registrations' lease (30 s) ends them.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter as CountOf
from contextlib import AsyncExitStack

import structlog
from prometheus_client import Counter, Gauge

from callyard import clients, topics
from callyard.errors import CommandError
from callyard.health import Health
from callyard.renewals import Renewals
from callyard.sending import Sender
from callyard.settings import EslSettings, KafkaSettings, Loaded, NodeSettings
from callyard.tasks import Tasks
from fs_hooks import esl
from fs_hooks.aside import Aside
from fs_hooks.client import (
    Backoff,
    CommandRefusedError,
    EslError,
    Link,
    NotFreeSwitchError,
    WrongPasswordError,
    connect,
)
from fs_hooks.conferences import MAINTENANCE, Change, Conferences, EventError, SnapshotError
from fs_hooks.publisher import Printer, Publisher

log = structlog.get_logger(__name__)

CONNECTED = Gauge("callyard_hook_connected", "Whether FreeSWITCH is followed (1) or not (0).")
CONFERENCES = Gauge("callyard_hook_conferences", "Conferences on this node that are registered.")
LEFT_OUT = Counter("callyard_hook_left_out", "Conferences that are not registered by their name.", ["reason"])
EVENTS = Counter("callyard_hook_events", "Events that FreeSWITCH sent.")
SNAPSHOTS = Counter("callyard_hook_snapshots", "Answers to 'conference json_list' that were reconciled with.")
FAILURES = Counter("callyard_hook_connection_failures", "Connections to FreeSWITCH that failed or broke.", ["error"])

STEADY_SECONDS = 5.0
"""A connection that held this long is reconnected at once; one that breaks sooner waits as after a failed attempt."""
REPEAT_SECONDS = 60.0
"""The same trouble is told again after this long."""
DRAIN_SECONDS = 2.0
"""At the end, how long changes that are on their way may still take."""


class Hook:
    """Follows FreeSWITCH."""

    def __init__(self, settings: EslSettings, node: NodeSettings, publisher: Publisher, aside: Aside) -> None:
        self._settings = settings
        self._node = node
        self._publisher = publisher
        self._aside = aside
        self._conferences = Conferences(node.excluded)
        self._snapshot_taken = asyncio.Event()
        self._told: tuple[str, float] = ("", 0.0)
        self._left_out: CountOf[str] = CountOf()
        self.following = False
        """Whether there is a connection to FreeSWITCH whose snapshot was taken."""
        self.published = False
        """Whether Kafka has what the first snapshot told."""

    async def follow(self) -> None:
        """Follow FreeSWITCH for ever, across its restarts. Raises `CommandError` if at first it refuses the password.

        Later on a refused password is an outage like others: what was registered must not hang on a typing error.
        """
        backoff = Backoff(self._settings.reconnect_max_seconds)
        while True:
            followed_since: float | None = None
            try:
                async with connect(self._settings, self._take) as link:
                    await link.command("event", self._settings.event_format, "CUSTOM", MAINTENANCE)
                    await self._reconcile(link)
                    followed_since = time.monotonic()
                    self._followed()
                    while True:
                        await link.wait(self._node.snapshot_seconds)
                        await self._reconcile(link)
            except EslError as error:
                self.following = False
                CONNECTED.set(0)
                FAILURES.labels(type(error).__name__).inc()
                if isinstance(error, WrongPasswordError) and not self._snapshot_taken.is_set():
                    raise CommandError(str(error)) from None
                if followed_since is None:
                    self._apply(self._conferences.lost(), time.monotonic())
                    self._tell("cannot follow FreeSWITCH, trying again", error)
                else:
                    self._tell("connection to FreeSWITCH lost, connecting again", error)
                if followed_since is not None and time.monotonic() - followed_since > STEADY_SECONDS:
                    backoff.reset()
                else:
                    await asyncio.sleep(backoff.delay())

    async def renew(self) -> None:
        """Tell once that the hook is ready, then renew the leases of all registrations for ever."""
        await self._snapshot_taken.wait()
        await self._publisher.settled()
        self.published = True
        log.info("ready", conferences=len(self._conferences.live))
        renewals = Renewals(self._node.renew_seconds)
        while True:
            await asyncio.sleep(renewals.tick_seconds)
            live = {conference.instance_id: conference for conference in self._conferences.live.values()}
            for instance_id in renewals.due(live, time.monotonic()):
                self._publisher.renew(live[instance_id])

    def _take(self, frame: esl.Event | esl.UnknownFrame | esl.Unreadable) -> None:
        at = time.monotonic()
        if isinstance(frame, esl.Unreadable):
            self._aside.put(f"{frame.content_type}: {frame.reason}", frame.body)
        elif isinstance(frame, esl.UnknownFrame):
            self._aside.put(f"a frame of unknown type {frame.content_type!r:.60}", frame.body)
        else:
            EVENTS.inc()
            try:
                changes = self._conferences.event(frame)
            except EventError as error:
                # Not by orjson: JSON that was read may hold half of a surrogate pair, which it refuses to write.
                self._aside.put(str(error), json.dumps(dict(frame.headers)).encode())
            else:
                self._apply(changes, at)

    async def _reconcile(self, link: Link) -> None:
        question = self._conferences.ask()
        answer = await link.api("conference", "json_list")
        at = time.monotonic()
        try:
            changes = self._conferences.snapshot(question, answer, time.time_ns() // 1_000_000)
        except SnapshotError as error:
            # Without a snapshot nothing proves what runs: the connection is as good as none.
            self._aside.put(str(error), answer.encode())
            raise CommandRefusedError(f"{error}: FreeSWITCH 1.6 or later is needed, with mod_conference") from None
        SNAPSHOTS.inc()
        self._apply(changes, at)

    def _apply(self, changes: list[Change], at: float) -> None:
        for change in changes:
            self._publisher.offer(change, at)
        CONFERENCES.set(len(self._conferences.live))
        for reason, count in self._conferences.left_out.items():
            LEFT_OUT.labels(reason).inc(count - self._left_out[reason])
            self._left_out[reason] = count

    def _followed(self) -> None:
        self.following = True
        CONNECTED.set(1)
        self._told = ("", 0.0)
        self._snapshot_taken.set()
        log.info("following FreeSWITCH", conferences=len(self._conferences.live))

    def _tell(self, event: str, error: EslError) -> None:
        # An outage lasts long and is retried often: the same trouble is told, and set aside, once a minute.
        text, at = self._told
        if str(error) == text and time.monotonic() - at < REPEAT_SECONDS:
            return
        self._told = (str(error), time.monotonic())
        log.error(event, error=str(error))
        if isinstance(error, NotFreeSwitchError) and error.rubbish:
            self._aside.put(str(error), error.rubbish)


async def run(stop: asyncio.Event, health: Health, settings: Loaded, *, dry_run: bool = False) -> None:
    """Run the hook until ``stop``. A dry run prints the records to standard output and needs no Kafka."""
    node = settings[NodeSettings]
    async with AsyncExitStack() as stack:
        sender = None if dry_run else await _sender(stack, settings[KafkaSettings], node)
        publisher = Publisher(Printer() if sender is None else sender, node)
        aside = Aside(sender)
        hook = Hook(settings[EslSettings], node, publisher, aside)
        health.require("FreeSWITCH is followed", lambda: hook.following)
        health.require("all conferences of the first snapshot are registered", lambda: hook.published)
        tasks = Tasks()
        # Ended in the reverse order: FreeSWITCH is left before the publisher, so that what it said last is still sent.
        tasks.start("publish", publisher.run())
        tasks.start("set-aside", aside.run())
        tasks.start("renew", hook.renew())
        tasks.start("follow", hook.follow())
        await tasks.run(stop)
        await publisher.drain(DRAIN_SECONDS)


async def _sender(stack: AsyncExitStack, kafka: KafkaSettings, node: NodeSettings) -> Sender:
    async with clients.admin(kafka) as admin:
        await topics.check(admin, kafka)
    producer = await stack.enter_async_context(clients.producer(kafka, client_id=f"hook:{node.id}"))
    names = topics.topics(kafka)
    return Sender(producer, names, names.registrations.name)
