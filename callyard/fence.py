"""The fence: a worker that was frozen longer than its session must say nothing when it wakes.

Kafka has given its partitions to another worker by then, and nothing in a plain produce request (or in a redirect, at a
gateway) tells so. Each send therefore checks, in the same step, how long ago a heartbeat was last confirmed, by a clock
that also counts suspension (CLOCK_BOOTTIME). A heartbeat counts from the moment it was *sent*: the broker's session
began no earlier. What remains is the time between this check and the system call that writes to the socket, with no
await in between.

aiokafka tells nobody of confirmed heartbeats and asks nobody before it writes: `watch_heartbeat` and `fence_producer`
reach into it, and fail loudly (`callyard.guards.GuardError`) where it has changed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import KafkaError
from aiokafka.protocol.produce import ProduceRequest

from callyard.guards import patched

POLL_SECONDS = 0.02


class FencedError(KafkaError):  # type: ignore[misc]  # aiokafka has no complete types
    """This worker can no longer know that its partitions are its own: it must say nothing. No retry mends it."""


def boottime() -> float:
    """Seconds since boot, suspension included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Fence:
    """Knows when the group coordinator last confirmed this worker."""

    def __init__(self, session_seconds: float) -> None:
        # A fifth of the session is left for clocks that run at different speeds and for the write itself.
        self.limit = session_seconds * 0.8
        self._confirmed = float("-inf")

    def confirm(self, sent_at: float) -> None:
        """A heartbeat sent at ``sent_at`` (`boottime`) was answered: this worker is a member of its generation."""
        self._confirmed = max(self._confirmed, sent_at)

    @property
    def holds(self) -> bool:
        """Whether the last confirmation is recent enough to speak."""
        return boottime() - self._confirmed <= self.limit

    def check(self) -> None:
        """Raise `FencedError` unless the last confirmation is recent enough to speak."""
        age = boottime() - self._confirmed
        if age > self.limit:
            raise FencedError(f"the last confirmed heartbeat is {age:.1f} s old (limit {self.limit:.1f} s)")

    async def holding(self) -> None:
        """Wait until it holds."""
        while not self.holds:  # noqa: ASYNC110 - it may be another thread's loop that confirms
            await asyncio.sleep(POLL_SECONDS)


def watch_heartbeat(consumer: AIOKafkaConsumer, fence: Fence) -> None:
    """Tell the fence of each confirmed heartbeat of a started consumer; once for each coordinator it ever has."""
    coordinator = patched(consumer, "_coordinator")
    beat: Callable[[], Awaitable[bool]] = patched(coordinator, "_do_heartbeat")
    if getattr(beat, "watched", False):
        return

    async def watched() -> bool:
        sent_at = boottime()
        success = await beat()
        if success:
            fence.confirm(sent_at)
        return success

    watched.watched = True  # type: ignore[attr-defined]
    coordinator._do_heartbeat = watched  # noqa: SLF001 - no public way; see the module's docstring


def fence_producer(producer: AIOKafkaProducer, check: Callable[[], None]) -> None:
    """Call ``check`` before each produce request is written, retries included; what it raises is the delivery's error.

    An idempotent producer keeps a batch and retries it for ever: a worker that was cut off from its broker would write
    it when the network is back, after another worker has taken its partitions over.
    """
    client = patched(producer, "client")
    send: Callable[..., Awaitable[Any]] = patched(client, "send")

    async def fenced(node_id: int, request: Any, **more: Any) -> Any:
        if isinstance(request, ProduceRequest):
            await client.ready(node_id, **more)  # so that nothing is waited for between the question and the write
            check()
        return await send(node_id, request, **more)

    client.send = fenced
