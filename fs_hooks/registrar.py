"""Between the sources and the publisher: merges what the sources say, hands on what changes, renews what is registered.

It returns at once, whatever Kafka does: sources call it while they read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping

import structlog
from prometheus_client import Gauge

from callyard.notify import Notifier
from callyard.records import Source
from callyard.renewals import Renewals
from callyard.settings import NodeSettings
from fs_hooks.instances import Change, Conference
from fs_hooks.merge import Merge
from fs_hooks.publisher import Publisher
from fs_hooks.voucher import Voucher

log = structlog.get_logger(__name__)

CONFERENCES = Gauge("callyard_hook_conferences", "Conferences on this node that are registered.")


class Registrar:
    """What this node's sources say, as registrations."""

    def __init__(
        self, node: NodeSettings, publisher: Publisher, notifier: Notifier, voucher: Voucher | None = None
    ) -> None:
        self._notifier = notifier
        self._publisher = publisher
        self._voucher = voucher
        if voucher is not None:
            voucher.numbers = lambda: self.meetings
        self._renew_seconds = node.renew_seconds
        self._merge = Merge(node.used_sources, through_freeswitch=not node.meeting_sip_uri)
        self._begun = asyncio.Event()
        self.published = False
        """Whether Kafka has what the first snapshots told."""

    @property
    def live(self) -> Mapping[str, Conference]:
        """What is registered, by key."""
        return self._merge.live

    @property
    def meetings(self) -> frozenset[str]:
        """The numbers that are registered as meetings: there may be no conference of FreeSWITCH's yet."""
        return frozenset(c.number for c in self.live.values() if c.source is Source.BIGBLUEBUTTON)

    def apply(self, changes: Iterable[Change], at: float) -> None:
        """Apply what changed at a source; ``at`` is the monotonic time (seconds) of what caused it."""
        self._offer(self._merge.apply(changes), at)

    def followed(self, source: Source) -> None:
        """A source is followed, and what it has was applied."""
        self._offer(self._merge.followed(source), time.monotonic())

    def lost(self, source: Source) -> None:
        """A source can't be followed; what it had was applied as lost."""
        self._offer(self._merge.lost(source), time.monotonic())

    async def renew(self) -> None:
        """Tell once that the hook is ready, then renew the leases of all registrations for ever."""
        await self._begun.wait()
        if self._voucher is not None:
            await self._voucher.passed()
        await self._publisher.settled()
        self.published = True
        log.info("ready", conferences=len(self.live))
        self._notifier.ready("following the node's sources")
        renewals = Renewals(self._renew_seconds)
        while True:
            await asyncio.sleep(renewals.tick_seconds)
            live = self.live
            for key in renewals.due(live, time.monotonic()):
                self._publisher.renew(live[key])

    def _offer(self, changes: list[Change], at: float) -> None:
        outlet = self._publisher if self._voucher is None else self._voucher
        for change in changes:
            outlet.offer(change, at)
        CONFERENCES.set(len(self.live))
        if self._merge.begun:
            self._begun.set()
