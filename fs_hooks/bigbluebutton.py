"""Follows BigBlueButton: its messages on Redis for what happens now, its API's list for what was missed.

What it must never do: keep a meeting that nothing vouches for, or drop one because one of two voices is silent.

* The channel is subscribed first and the list asked for then, so that nothing falls between the two.
* While the channel holds, a list that can't be had changes nothing: what ends is said on the channel. Nor does a
  channel that breaks, as long as lists come: they are asked for at each attempt to subscribe again.
* When both fail, nothing vouches for any meeting: all end (`lost`), and what is found later begins again.
"""

from __future__ import annotations

import asyncio
import time

import structlog
from prometheus_client import Counter, Gauge

from callyard.errors import CommandError
from callyard.records import Source
from callyard.settings import BigBlueButtonSettings, NodeSettings
from fs_hooks import aside, getmeetings, resp, web
from fs_hooks.aside import Aside
from fs_hooks.channel import Channel, ChannelError, LogInError, subscribed
from fs_hooks.client import Backoff
from fs_hooks.instances import Change
from fs_hooks.meetings import CHANNEL, Meetings, MessageError
from fs_hooks.registrar import Registrar

log = structlog.get_logger(__name__)

SUBSCRIBED = Gauge("callyard_hook_meetings_subscribed", "Whether BigBlueButton's channel on Redis is followed (1).")
LISTED = Gauge("callyard_hook_meetings_listed", "Whether the last list of meetings could be had (1).")
MEETINGS = Gauge("callyard_hook_meetings", "Meetings of this node that are known.")
MESSAGES = Counter("callyard_hook_meetings_messages", "Messages on BigBlueButton's channel, of whatever kind.")
LISTS = Counter("callyard_hook_meetings_lists", "Answers to getMeetings that were reconciled with.")
LEFT_OUT = Gauge("callyard_hook_meetings_left_out", "Meetings that were not registered since the start.", ["reason"])

REPEAT_SECONDS = 60.0
"""The same trouble is told again after this long."""


class BigBlueButton:
    """The source ``bigbluebutton``."""

    def __init__(self, settings: BigBlueButtonSettings, node: NodeSettings, registrar: Registrar, rest: Aside) -> None:
        self._settings = settings
        self._snapshot_seconds = node.snapshot_seconds
        self._registrar = registrar
        self._aside = rest
        self._meetings = Meetings(node.excluded)
        self._following = False
        self._once_followed = False
        self._told: dict[str, tuple[str, float]] = {}

    async def follow(self) -> None:
        """Follow it for ever, across its restarts. Raises `CommandError` if at first it refuses secret or password."""
        backoff = Backoff(self._settings.reconnect_max_seconds)
        while True:
            try:
                async with subscribed(self._settings, CHANNEL, self._take) as channel:
                    SUBSCRIBED.set(1)
                    self._tell("Redis", "", "follows BigBlueButton's messages")
                    await self._follow(channel, backoff)
            except ChannelError as error:
                SUBSCRIBED.set(0)
                if isinstance(error, LogInError) and not self._once_followed:
                    raise CommandError(str(error)) from None
                self._tell("Redis", str(error), "no messages of BigBlueButton, trying again")
                # What happens from here on isn't said to us: only the list can vouch.
                if not await self._reconcile():
                    self._lose()
                await asyncio.sleep(backoff.delay())

    async def _follow(self, channel: Channel, backoff: Backoff) -> None:
        # A subscription begins after a gap, which only a list closes.
        gap, retry = True, Backoff(self._settings.reconnect_max_seconds)
        while True:
            if await self._reconcile():
                gap = False
                retry.reset()
                backoff.reset()
                await channel.wait(self._snapshot_seconds)
            else:
                if gap:
                    self._lose()
                await channel.wait(retry.delay())

    async def _reconcile(self) -> bool:
        question, answer = self._meetings.ask(), b""
        try:
            answer = await self._answer()
            listed = getmeetings.meetings(answer)
        except web.WebError as error:
            self._failed(f"{error}: check that bbb-web runs, and CALLYARD_BIGBLUEBUTTON_API_URL")
            return False
        except getmeetings.RefusedError as error:
            text = f"BigBlueButton refuses getMeetings ({error})"
            if error.key == "checksumError":
                text += ": CALLYARD_BIGBLUEBUTTON_SECRET must be what 'bbb-conf --secret' shows"
                if not self._once_followed:
                    raise CommandError(text) from None
            self._failed(text)
            return False
        except getmeetings.AnswerError as error:
            if self._failed(f"{error}: check CALLYARD_BIGBLUEBUTTON_API_URL"):
                self._aside.put(str(error), answer, aside.GET_MEETINGS)
            return False
        self._apply(self._meetings.reconcile(question, listed), time.monotonic())
        LISTS.inc()
        LISTED.set(1)
        self._tell("getMeetings", "", "BigBlueButton lists its meetings")
        if not self._following:
            self._following = self._once_followed = True
            self._registrar.followed(Source.BIGBLUEBUTTON)
            log.info("following BigBlueButton", meetings=len(self._meetings.live))
        return True

    async def _answer(self) -> bytes:
        scheme, _, rest = self._settings.api_url.partition("://")
        host, slash, path = rest.partition("/")
        signed = getmeetings.path(f"{slash}{path}", self._settings.secret.get_secret_value())
        return await web.get(f"{scheme}://{host}", signed, self._settings.timeout_seconds)

    def _take(self, message: bytes | resp.TooLarge) -> None:
        at = time.monotonic()
        MESSAGES.inc()
        if isinstance(message, resp.TooLarge):
            log.warning("passed over a message of BigBlueButton that is too large", bytes=message.bytes)
            return
        try:
            changes = self._meetings.message(message)
        except MessageError as error:
            self._aside.put(str(error), message, aside.REDIS)
        else:
            self._apply(changes, at)

    def _apply(self, changes: list[Change], at: float) -> None:
        self._registrar.apply(changes, at)
        MEETINGS.set(len(self._meetings.live))
        for reason, count in self._meetings.left_out.items():
            LEFT_OUT.labels(reason).set(count)

    def _lose(self) -> None:
        self._following = False
        self._apply(self._meetings.lost(), time.monotonic())
        self._registrar.lost(Source.BIGBLUEBUTTON)

    def _failed(self, text: str) -> bool:
        LISTED.set(0)
        return self._tell("getMeetings", text, "no list of BigBlueButton's meetings, trying again")

    def _tell(self, voice: str, trouble: str, event: str) -> bool:
        """Tell trouble once a minute, and its end (no ``trouble``) once; whether it was told now."""
        text, at = self._told.get(voice, ("", 0.0))
        if not trouble:
            if text:
                log.info(event)
            self._told.pop(voice, None)
            return bool(text)
        if trouble == text and time.monotonic() - at < REPEAT_SECONDS:
            return False
        self._told[voice] = (trouble, time.monotonic())
        log.error(event, error=trouble)
        return True
