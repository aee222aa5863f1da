"""Publishes what the mirror says, in order, for as long as this process speaks for its gateway.

The mirror is the truth, so nothing here has to be kept for ever: when Kafka doesn't take records (it is gone, a
delivery failed, more waits than `MAX_WAITING`), what waits is dropped, and as soon as Kafka is back everything is
announced anew. Only the ends of calls are kept, because the mirror forgets them; of those the newest `MAX_ENDED`. What
is lost beyond that, the desk learns by the call's lease.

A replica that stands by publishes nothing. It keeps the ends of the last `STANDBY_SECONDS`, longer than another replica
can be dead before its partition is taken over, and tells them when it begins to speak: the dead one may not have.

Records of one conference stay in order: one producer, one key, handed over one after the other without waiting for
each delivery. What fails ends that producer, and the next one begins with an announcement.

The fence is asked before each produce request. Where it doesn't hold (this process was frozen or cut off, or Kafka is
away) the request fails like any other, what waits is dropped, and nothing is said until a heartbeat is confirmed again.
That happens only to a member of the group, after it has heard whether it still speaks: then all is announced anew, or
it is mute. The process needs not end for that, so the mirror goes on. A producer belongs to the time between two words
of the group: what one still holds when this process is muted is never written, even if it speaks again later.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable
from functools import partial

import structlog
from aiokafka.errors import KafkaError
from aiokafka.structs import RecordMetadata
from prometheus_client import Counter

from agents.mirror import Mirror
from callyard import access, clients
from callyard.broker_clock import BrokerClock
from callyard.fence import Fence, FencedError, fence_producer
from callyard.records import CallerLeft, CallRecord
from callyard.sending import Sender
from callyard.settings import KafkaSettings
from callyard.topics import Topics

log = structlog.get_logger(__name__)

MAX_WAITING = 20_000
MAX_ENDED = 20_000
STANDBY_SECONDS = 30.0
RETRY_SECONDS = 1.0
STALL_SECONDS = 3.0
"""A delivery that takes longer is an outage: an idempotent producer retries by itself, for ever and without a word."""

BEHIND = Counter("callyard_agent_outages", "Times that Kafka took no records, so that all was announced anew later.")


class Rejected:
    """A message that could not be read, on its way to the rejected topic."""

    def __init__(self, source: str, reason: str, value: bytes, key: bytes | None = None) -> None:
        self.source, self.reason, self.value, self.key = source, reason, value, key


class Publisher:
    """The voice of one gateway. Mute until `speak`."""

    def __init__(
        self, settings: KafkaSettings, topics: Topics, mirror: Mirror, fence: Fence, clock: BrokerClock, client_id: str
    ) -> None:  # fmt: skip
        self._settings = settings
        self._topics = topics
        self._mirror = mirror
        self._fence = fence
        self._clock = clock
        self._client_id = client_id
        self._waiting: deque[CallRecord | Rejected] = deque()
        self._ended: dict[tuple[str, int], tuple[float, CallerLeft]] = {}
        self._wake = asyncio.Event()
        self._speaking = False
        self._behind = False
        self._told_why = ""
        self._announce = False
        self._voice = 0
        self._held_back = False
        self._under_way = 0
        self._progress = 0.0
        self._failure: BaseException | None = None
        self._drained = asyncio.Event()
        self._drained.set()
        self.announced = asyncio.Event()
        """Set once an announcement was delivered completely since `speak`."""

    @property
    def speaking(self) -> bool:
        return self._speaking

    def speak(self) -> None:
        """Speak from now on; begins with an announcement of everything."""
        self._speaking = True
        self.announce()

    async def drain(self, seconds: float) -> None:
        """Wait until all that was said so far is delivered, so many seconds at most; says what was left."""
        if not self._speaking:
            return
        try:
            await asyncio.wait_for(self._drained.wait(), seconds)
        except asyncio.TimeoutError:
            log.warning("ended before Kafka took everything; the next one announces it",
                        waiting=len(self._waiting) + self._under_way)  # fmt: skip

    def mute(self) -> None:
        """Somebody else speaks for the gateway: also what was handed to the producer is not written any more."""
        self._speaking = False
        self._voice += 1
        self._failure = FencedError("this process no longer speaks for its gateway")
        self._wake.set()
        self._waiting.clear()
        self._drained.set()
        self.announced.clear()

    def announce(self) -> None:
        """Tell everything anew, after what still waits to be told."""
        self._announce = True
        self._drained.clear()
        self.announced.clear()
        self._wake.set()

    def say(self, records: Iterable[CallRecord]) -> None:
        """Publish these, in order, after what was said before. Never blocks."""
        for record in records:
            if isinstance(record, CallerLeft):
                self._remember(record)
            if self._speaking:
                self._waiting.append(record)
        self._check()

    def reject(self, source: str, reason: str, value: bytes, key: bytes | None = None) -> None:
        """Set a message aside; see `callyard.sending.reject`."""
        if self._speaking:
            self._waiting.append(Rejected(source, reason, value, key))
            self._check()

    def _check(self) -> None:
        if len(self._waiting) > MAX_WAITING:
            self._waiting.clear()
            self.announce()
            self._told_behind("more waits than is kept")
        if self._waiting:
            self._drained.clear()
        self._wake.set()

    def _remember(self, record: CallerLeft) -> None:
        now = time.monotonic()
        self._ended[(record.call_id, record.stay)] = (now, record)
        while self._ended:
            oldest, (since, _) = next(iter(self._ended.items()))
            if len(self._ended) <= MAX_ENDED and (self._speaking or now - since < STANDBY_SECONDS):
                return
            del self._ended[oldest]

    async def run(self) -> None:
        """Publish until cancelled."""
        while True:
            self._voice += 1
            voice = self._voice
            try:
                async with clients.producer(self._settings, self._client_id) as producer:
                    fence_producer(producer, partial(self._check_voice, voice))
                    self._failure = None
                    self._under_way = 0
                    await self._publish(Sender(producer, self._topics, self._topics.calls.name), voice)
            except access.DENIALS as error:
                self._told_behind(
                    access.why(self._settings, "gateway", "Write", self._topics.calls.name, error), new=True
                )
            except (KafkaError, clients.KafkaUnreachableError) as error:
                if self._voice == voice:
                    self._told_behind(str(error) or repr(error))
            self._waiting.clear()
            self.announce()
            if self._voice == voice:
                await asyncio.sleep(RETRY_SECONDS)

    def _check_voice(self, voice: int) -> None:
        if voice != self._voice:
            raise FencedError("what was handed over before the group changed is not written after it")
        self._fence.check()

    async def _pass_fence(self) -> None:
        if not self._fence.holds:
            self._progress = time.monotonic()
            self._held_back = True
            await self._fence.holding()
            self._held_back = False

    async def _publish(self, sender: Sender, voice: int) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._speaking:
                await self._pass_fence()
            if voice != self._voice:
                raise FencedError("the group changed")
            if self._failure is not None:
                raise self._failure
            if self._announce and self._speaking:
                self._announce = False
                self._waiting.extend(self._mirror.announce())
                self._waiting.extend(record for _, record in self._ended.values())
            while self._waiting and self._failure is None:
                item = self._waiting.popleft()
                if isinstance(item, Rejected):
                    await sender.reject(item.source, item.reason, item.value, item.key)
                    continue
                if not self._under_way:
                    self._progress = time.monotonic()
                self._under_way += 1
                delivery = await sender.begin(item, item.conference)
                delivery.add_done_callback(partial(self._delivered, voice, item))
            self._check_announced()

    async def watch(self) -> None:
        """Say so when Kafka takes nothing; until cancelled."""
        while True:
            await asyncio.sleep(STALL_SECONDS / 3)
            if (self._under_way or self._held_back) and time.monotonic() - self._progress > STALL_SECONDS:
                why = "no heartbeat was confirmed" if self._held_back else "nothing was delivered"
                self._told_behind(f"{why} for {STALL_SECONDS:g} s")

    def _delivered(self, voice: int, record: CallRecord, delivery: asyncio.Future[RecordMetadata]) -> None:
        failure = asyncio.CancelledError() if delivery.cancelled() else delivery.exception()
        if voice != self._voice:
            # Of a producer that has been given up: all was announced anew.
            return
        self._under_way -= 1
        if failure is not None:
            self._failure = KafkaError(f"not delivered: {failure!r}") if delivery.cancelled() else failure
            self._wake.set()
            return
        self._progress = time.monotonic()
        self._clock.observe(delivery.result())
        if isinstance(record, CallerLeft):
            self._ended.pop((record.call_id, record.stay), None)
        if log.is_enabled_for(10):
            log.debug("record delivered", type=record.type, call_id=record.call_id, applied_ns=time.time_ns())
        self._check_announced()

    def _check_announced(self) -> None:
        if self._speaking and not self._announce and not self._waiting and not self._under_way and not self._failure:
            self.announced.set()
            self._drained.set()
            if self._behind:
                self._behind = False
                log.info("Kafka takes records again; everything is told")

    def _told_behind(self, why: str, *, new: bool = False) -> None:
        """``new``: tell the reason even where another one was told before."""
        if not self._behind:
            BEHIND.inc()
        if not self._behind or (new and why != self._told_why):
            self._behind, self._told_why = True, why
            log.error("Kafka takes no records; the mirror goes on, and all is announced when it is back", why=why)
