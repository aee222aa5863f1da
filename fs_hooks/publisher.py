"""Keeps Kafka told of this node's registrations: for each instance the newest state, and nothing older.

Why it is apart from the event socket: FreeSWITCH must be read at full speed whatever Kafka does. `Publisher.offer`
returns at once and only notes an instance's newest state; so what waits is bounded by the conferences that run or
that Kafka was told of, however long Kafka is away; of those, `MOST_IN_FLIGHT` at most are handed to the client before
it has delivered some. What Kafka was never told of is not unregistered either.

Order: an instance has one record in flight, so its records never overtake each other. Different instances don't wait
for each other: a burst goes out as a few requests, and of a number that is created anew the new instance is registered
before the old one's end is acknowledged; a registration names its instance, so either order means the same.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol, TextIO

import structlog
from aiokafka.errors import KafkaError, KafkaTimeoutError, OutOfOrderSequenceNumber
from prometheus_client import Gauge, Histogram

from callyard.access import DENIALS
from callyard.errors import CommandError
from callyard.records import ConferenceRegistered, ConferenceUnregistered, Sent
from callyard.sending import Sequence
from callyard.settings import NodeSettings
from callyard.tasks import within
from fs_hooks.instances import Change, Conference, Opened

log = structlog.get_logger(__name__)

WAITING = Gauge("callyard_hook_waiting", "Instances whose newest state Kafka has not acknowledged yet.")
DELIVERY_SECONDS = Histogram(
    "callyard_hook_delivery_seconds",
    "From reading an event, or a snapshot's answer, to Kafka's acknowledgement of what it changed.",
    buckets=(0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5, 30),
)

STALL_SECONDS = 2.0
"""A delivery that takes longer than this is told to operators: some hundred times what it should take."""
RETRY_SECONDS = 0.5
_MENDED = (*DENIALS, KafkaTimeoutError, OutOfOrderSequenceNumber)
"""What isn't retriable by Kafka's words, but is gone once an operator gave a right back, or by another producer."""
MOST_IN_FLIGHT = 1000
"""Records that the client holds at a time: what is handed to it can't be taken back when its conference ends."""


class Outlet(Protocol):
    """Where records go: `callyard.sending.Sender`, or `Printer`."""

    async def begin(self, record: Sent, conference: str) -> asyncio.Future[object]:
        """Hand a record over; the future ends with its delivery, or with a `KafkaError`."""


class Printer:
    """Prints each record as a line of JSON instead of sending it."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = sys.stdout if out is None else out
        self._sequence = Sequence()

    async def begin(self, record: Sent, conference: str) -> asyncio.Future[object]:  # noqa: ARG002 - the outlet's form
        """Print it."""
        self._out.write(self._sequence.stamp(record).encode().decode() + "\n")
        self._out.flush()
        done: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done


class _Said(NamedTuple):
    change: Change
    at: float
    """Monotonic time of what caused it."""
    renewal: bool = False


class Publisher:
    """Tells Kafka what changed."""

    def __init__(self, outlet: Outlet, node: NodeSettings, why: Callable[[BaseException], str] = repr) -> None:
        """``why`` says in words what a delivery failed of."""
        self._outlet = outlet
        self._node = node
        self._why = why
        self._waiting: dict[str, _Said] = {}
        self._in_flight: dict[str, _Said] = {}
        self._handed_at: dict[str, float] = {}
        """When what is in flight was handed over; the oldest first."""
        self._told: set[str] = set()
        self._wake = asyncio.Event()
        self._settled = asyncio.Event()
        self._settled.set()
        self._not_before = 0.0
        self._stalled_since: float | None = None
        self._told_why = ""
        self._fatal: BaseException | None = None

    def offer(self, change: Change, at: float) -> None:
        """Note a change; ``at`` is the monotonic time (seconds) of what caused it. Returns at once."""
        self._note(_Said(change, at))

    def renew(self, conference: Conference) -> None:
        """Renew a registration's lease, unless something newer is on its way."""
        if conference.key not in self._waiting and conference.key not in self._in_flight:
            self._note(_Said(Opened(conference), time.monotonic(), renewal=True))

    async def settled(self) -> None:
        """Wait until nothing waits for Kafka."""
        await self._settled.wait()

    async def run(self) -> None:
        """Hand over what waits, for ever. Raises `CommandError` when Kafka refuses for good."""
        while True:
            self._wake.clear()
            await self._hand_over()
            if self._fatal is not None:
                raise CommandError(f"Kafka refuses this hook's records for good: {self._fatal!r}") from self._fatal
            pause = self._pause()
            timer = None if pause is None else asyncio.get_running_loop().call_later(pause, self._wake.set)
            try:
                await self._wake.wait()
            finally:
                if timer is not None:
                    timer.cancel()
            self._look_for_stall()

    async def drain(self, seconds: float) -> None:
        """Give what still waits this long to be delivered; `run` must have ended. Says what was left."""
        try:
            await within(self._drain(), seconds)
        except asyncio.TimeoutError:
            log.warning("ended before Kafka took everything", waiting=self._count())

    async def _drain(self) -> None:
        while self._waiting or self._in_flight:
            self._wake.clear()
            await self._hand_over()
            await self._wake.wait()

    def _note(self, said: _Said) -> None:
        instance = said.change.conference.key
        if not isinstance(said.change, Opened) and instance not in self._told:
            self._waiting.pop(instance, None)
        else:
            # Taken out first, so that the order of hand-over is that of the newest changes.
            self._waiting.pop(instance, None)
            self._waiting[instance] = said
        self._changed()
        self._wake.set()

    async def _hand_over(self) -> None:
        for instance in [i for i in self._waiting if i not in self._in_flight]:
            if time.monotonic() < self._not_before or len(self._in_flight) >= MOST_IN_FLIGHT:
                return
            said = self._waiting.pop(instance, None)
            if said is None:  # taken back while an earlier hand-over waited
                continue
            self._in_flight[instance] = said
            self._handed_at[instance] = time.monotonic()
            if isinstance(said.change, Opened):
                self._told.add(instance)
            try:
                delivery = await self._outlet.begin(self._record(said.change), said.change.conference.number)
            except KafkaError as error:
                self._failed(instance, said, error)
            else:
                delivery.add_done_callback(partial(self._ended, instance, said))

    def _ended(self, instance: str, said: _Said, delivery: asyncio.Future[object]) -> None:
        error = None if delivery.cancelled() else delivery.exception()
        if delivery.cancelled() or error is not None:
            self._failed(instance, said, error or asyncio.CancelledError())
            return
        del self._in_flight[instance], self._handed_at[instance]
        conference, seconds = said.change.conference, time.monotonic() - said.at
        if not isinstance(said.change, Opened):
            self._told.discard(instance)
            log.info("conference unregistered", conference=conference.number, instance_id=conference.instance_id,
                     reason=said.change.reason.value, seconds=round(seconds, 4))  # fmt: skip
        elif not said.renewal:
            log.info("conference registered", conference=conference.number, instance_id=conference.instance_id,
                     seconds=round(seconds, 4))  # fmt: skip
        if not said.renewal:
            DELIVERY_SECONDS.observe(seconds)
        if self._stalled_since is not None and not self._overdue():
            log.info("Kafka takes records again", seconds=round(time.monotonic() - self._stalled_since, 1))
            self._stalled_since = None
        self._changed()
        if self._waiting or not self._in_flight:
            self._wake.set()

    def _failed(self, instance: str, said: _Said, error: BaseException) -> None:
        del self._in_flight[instance], self._handed_at[instance]
        self._waiting.setdefault(instance, said)
        self._not_before = time.monotonic() + RETRY_SECONDS
        self._stall(self._why(error), new=isinstance(error, DENIALS))
        if isinstance(error, KafkaError) and not error.retriable and not isinstance(error, _MENDED):
            self._fatal = error
        self._changed()
        self._wake.set()

    def _look_for_stall(self) -> None:
        if self._overdue():
            self._stall(f"no acknowledgement for {STALL_SECONDS:g} s")

    def _overdue(self) -> bool:
        oldest = next(iter(self._handed_at.values()), None)
        return oldest is not None and time.monotonic() - oldest > STALL_SECONDS

    def _stall(self, reason: str, *, new: bool = False) -> None:
        """``new``: tell the reason even where another one was told before."""
        if self._stalled_since is None or (new and reason != self._told_why):
            self._stalled_since = self._stalled_since or time.monotonic()
            self._told_why = reason
            log.warning("Kafka takes no records: registrations wait, FreeSWITCH is still followed", reason=reason,
                        waiting=self._count())  # fmt: skip

    def _pause(self) -> float | None:
        if self._waiting and not self._in_flight:
            return max(0.0, self._not_before - time.monotonic())
        return STALL_SECONDS / 2 if self._in_flight else None

    def _count(self) -> int:
        return len(self._waiting.keys() | self._in_flight.keys())

    def _changed(self) -> None:
        WAITING.set(self._count())
        if self._waiting or self._in_flight:
            self._settled.clear()
        else:
            self._settled.set()

    def _record(self, change: Change) -> Sent:
        conference = change.conference
        who = {
            "sender": f"hook:{self._node.id}",
            "conference": conference.number,
            "source": conference.source,
            "instance_id": conference.instance_id,
            "node_id": self._node.id,
        }
        if not isinstance(change, Opened):
            return ConferenceUnregistered.model_validate({**who, "reason": change.reason})
        uri = self._node.uri_of(conference.number, conference.source)
        return ConferenceRegistered.model_validate({**who, "sip_uri": uri, "opened_at_ms": conference.opened_at_ms})
