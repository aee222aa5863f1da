"""Keeps FreeSWITCH vouching for the meetings that are registered: before the registration, as long as it lasts.

It stands between the registrar and the publisher. A caller can come some ten milliseconds after Kafka has a
registration, and the node's dialplan answers 404 for a number that nothing vouches for: so a meeting's registration is
held back until FreeSWITCH has confirmed the entry. Changes keep their order: what comes after one that is held back
waits as well.

What this must never do: hold a registration back for good. Where FreeSWITCH can't be told, registrations are published
all the same (callers of meetings that nobody has joined by audio are refused and tried again), and that is said.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection

import structlog
from prometheus_client import Counter

from callyard.records import Source
from fs_hooks.client import EslError, Link
from fs_hooks.instances import Change
from fs_hooks.publisher import Publisher
from fs_hooks.vouching import Vouching, apply, take_over

log = structlog.get_logger(__name__)

FAILURES = Counter("callyard_hook_vouching_failures", "Times that FreeSWITCH couldn't be told to vouch for meetings.")
REPEAT_SECONDS = 60.0
"""The same trouble is told again after this long."""


class Voucher:
    """Vouches for meetings at one FreeSWITCH. ``seconds``: how long an entry counts without being renewed."""

    def __init__(self, publisher: Publisher, seconds: int) -> None:
        self._publisher = publisher
        self._seconds = seconds
        self._vouching = Vouching(seconds)
        self._link: Link | None = None
        self._held: deque[tuple[Change, float]] = deque()
        self._wake = asyncio.Event()
        self._passed = asyncio.Event()
        self._passed.set()
        self._told: tuple[str, float] = ("", 0.0)
        self.numbers: Callable[[], Collection[str]] = tuple
        """The numbers to vouch for now."""

    def offer(self, change: Change, at: float) -> None:
        """Hand a change on to the publisher, if need be once FreeSWITCH vouches for it. Returns at once."""
        meeting = change.conference.source is Source.BIGBLUEBUTTON
        if self._link is None or not (meeting or self._held):
            self._publisher.offer(change, at)
        else:
            self._held.append((change, at))
            self._passed.clear()
        if meeting:
            self._wake.set()

    async def passed(self) -> None:
        """Wait until nothing is held back."""
        await self._passed.wait()

    async def connected(self, link: Link) -> None:
        """There is a connection; what its FreeSWITCH holds is asked first: it may have restarted. Raises `EslError`."""
        await take_over(link, self._vouching)
        self._link = link
        self._wake.set()

    def refused(self, error: EslError) -> None:
        """FreeSWITCH doesn't let this user ask what it holds: nothing is held back for it."""
        self._tell(error)

    def disconnected(self) -> None:
        """The connection is over: what is held back isn't any more."""
        self._link = None
        self._release(len(self._held))

    async def run(self) -> None:
        """Keep the entries, for ever."""
        while True:
            self._wake.clear()
            held = len(self._held)
            if self._link is not None:
                try:
                    await apply(self._link, self._vouching, self.numbers(), int(time.time()))
                except EslError as error:
                    self._tell(error)
            self._release(held)
            timer = asyncio.get_running_loop().call_later(self._seconds / 3, self._wake.set)
            try:
                await self._wake.wait()
            finally:
                timer.cancel()

    def _release(self, count: int) -> None:
        # Never more than there are: a connection that ended meanwhile has released them.
        for _ in range(min(count, len(self._held))):
            self._publisher.offer(*self._held.popleft())
        if not self._held:
            self._passed.set()

    def _tell(self, error: EslError) -> None:
        FAILURES.inc()
        text, at = self._told
        if str(error) == text and time.monotonic() - at < REPEAT_SECONDS:
            return
        self._told = (str(error), time.monotonic())
        log.error(
            "FreeSWITCH doesn't vouch for meetings: callers of those that nobody has joined by audio are refused",
            error=str(error),
            advice="see 'callyard doctor node'",
        )
