"""The hook: follows one node's sources and keeps Kafka told of its conferences. Composed here, and only here.

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
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial

import structlog
from prometheus_client import Counter, Gauge

from callyard import access, clients, lasting, topics
from callyard.errors import CommandError
from callyard.health import Health
from callyard.notify import Notifier
from callyard.records import Sent, Source
from callyard.sending import Sender
from callyard.settings import (
    BigBlueButtonSettings,
    EslSettings,
    KafkaSettings,
    Loaded,
    NodeSettings,
    SettingsError,
)
from callyard.signing import Signer, SigningError
from callyard.tasks import Tasks
from fs_hooks import esl
from fs_hooks.aside import Aside
from fs_hooks.bigbluebutton import BigBlueButton
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
from fs_hooks.registrar import Registrar
from fs_hooks.voucher import Voucher

log = structlog.get_logger(__name__)

CONNECTED = Gauge("callyard_hook_connected", "Whether FreeSWITCH is followed (1) or not (0).")
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

    def __init__(
        self, settings: EslSettings, node: NodeSettings, registrar: Registrar, aside: Aside, notifier: Notifier,
        voucher: Voucher | None = None,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._node = node
        self._registrar = registrar
        self._aside = aside
        self._notifier = notifier
        self._voucher = voucher
        self._conferences = Conferences(node.excluded)
        self._once_followed = False
        self._told: tuple[str, float] = ("", 0.0)
        self._left_out: CountOf[str] = CountOf()
        self.following = False
        """Whether there is a connection to FreeSWITCH whose snapshot was taken."""

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
                    if self._voucher is not None:
                        await self._vouch(self._voucher, link)
                    await self._reconcile(link)
                    followed_since = time.monotonic()
                    self._followed()
                    while True:
                        await link.wait(self._node.snapshot_seconds)
                        await self._reconcile(link)
            except EslError as error:
                self.following = False
                CONNECTED.set(0)
                if self._voucher is not None:
                    self._voucher.disconnected()
                FAILURES.labels(type(error).__name__).inc()
                if isinstance(error, WrongPasswordError) and not self._once_followed:
                    raise CommandError(str(error)) from None
                if followed_since is None:
                    self._apply(self._conferences.lost(), time.monotonic())
                    self._registrar.lost(Source.FREESWITCH)
                    self._tell("cannot follow FreeSWITCH, trying again", error)
                else:
                    self._tell("connection to FreeSWITCH lost, connecting again", error)
                if followed_since is not None and time.monotonic() - followed_since > STEADY_SECONDS:
                    backoff.reset()
                else:
                    await asyncio.sleep(backoff.delay())

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

    async def _vouch(self, voucher: Voucher, link: Link) -> None:
        try:
            await voucher.connected(link)
        except CommandRefusedError as error:
            # Conferences can be followed all the same.
            voucher.refused(error)

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
        self._registrar.apply(changes, at)
        for reason, count in self._conferences.left_out.items():
            LEFT_OUT.labels(reason).inc(count - self._left_out[reason])
            self._left_out[reason] = count

    def _followed(self) -> None:
        self.following = True
        CONNECTED.set(1)
        self._told = ("", 0.0)
        self._once_followed = True
        self._registrar.followed(Source.FREESWITCH)
        self._notifier.status(self._following)
        log.info("following FreeSWITCH", conferences=len(self._conferences.live))

    @property
    def _following(self) -> str:
        return f"following FreeSWITCH at {self._settings.host}:{self._settings.port}"

    def _tell(self, event: str, error: EslError) -> None:
        # An outage lasts long and is retried often: the same trouble is told, and set aside, once a minute.
        text, at = self._told
        if str(error) == text and time.monotonic() - at < REPEAT_SECONDS:
            return
        self._told = (str(error), time.monotonic())
        log.error(event, error=str(error))
        self._notifier.status(f"{event}: {error}")
        if isinstance(error, NotFreeSwitchError) and error.rubbish:
            self._aside.put(str(error), error.rubbish)


async def run(stop: asyncio.Event, health: Health, settings: Loaded, *, dry_run: bool = False) -> None:
    """Run the hook until ``stop``. A dry run prints the records to standard output and needs no Kafka."""
    node = settings[NodeSettings]
    async with AsyncExitStack() as stack:
        sender = None if dry_run else await _sender(stack, settings[KafkaSettings], node)
        if sender is None:
            publisher = Publisher(Printer(), node)
        else:
            kafka = settings[KafkaSettings]
            name = topics.topics(kafka).registrations.name
            publisher = Publisher(sender, node, partial(access.why, kafka, "node", "Write", name))
        aside = Aside(sender)
        notifier = Notifier()
        voucher = Voucher(publisher, node.vouch_seconds) if sender is not None and vouches(node) else None
        registrar = Registrar(node, publisher, notifier, voucher)
        health.require("all conferences of the first snapshot are registered", lambda: registrar.published)
        tasks = Tasks()
        if notifier.watchdog_seconds is not None:
            tasks.start("watchdog", notifier.watch())
        # Ended in the reverse order: sources are left before the publisher, so that what they said last is still sent.
        tasks.start("publish", publisher.run())
        tasks.start("set-aside", aside.run())
        if voucher is not None:
            tasks.start("vouch", voucher.run())
        tasks.start("renew", registrar.renew())
        if Source.FREESWITCH in node.used_sources:
            hook = Hook(settings[EslSettings], node, registrar, aside, notifier, voucher)
            health.require("FreeSWITCH is followed", lambda: hook.following)
            tasks.start("follow", hook.follow())
        if Source.BIGBLUEBUTTON in node.used_sources:
            source = BigBlueButton(settings[BigBlueButtonSettings], node, registrar, aside)
            tasks.start("follow-meetings", source.follow())
        try:
            await tasks.run(stop)
        finally:
            notifier.stopping()
        await publisher.drain(DRAIN_SECONDS)


def vouches(node: NodeSettings) -> bool:
    """Whether meetings are reached through FreeSWITCH, whose dialplan refuses what has no conference there."""
    return {Source.FREESWITCH, Source.BIGBLUEBUTTON} <= node.used_sources and not node.meeting_sip_uri


async def _sender(stack: AsyncExitStack, kafka: KafkaSettings, node: NodeSettings) -> Sender:
    await access.check(kafka, "node")
    async with clients.admin(kafka) as admin:
        await topics.check(admin, kafka)
    producer = await stack.enter_async_context(lasting.producer(kafka, f"hook:{node.id}"))
    names = topics.topics(kafka)
    return Sender(producer, names, names.registrations.name, sign=_sign(node))


def _sign(node: NodeSettings) -> Callable[[Sent], Sent] | None:
    if node.signing_key is None:
        return None
    try:
        return Signer(node.signing_key.get_secret_value()).sign
    except SigningError as error:
        raise SettingsError([f"{node.variable('signing_key')} {error}"]) from None
