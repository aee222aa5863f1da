"""The fence: a worker that was frozen longer than its session must say nothing when it wakes.

Kafka has given its partitions to another worker by then, and nothing in a plain produce request tells the broker so.
Each send therefore checks, in the same step, how long ago a heartbeat was last confirmed, by a clock that also counts
suspension (CLOCK_BOOTTIME). A heartbeat counts from the moment it was *sent*: the broker's session began no earlier.
What remains is the time between this check and the system call that writes to the socket, with no await in between.
"""

from __future__ import annotations

import time


class FencedError(RuntimeError):
    """This worker can no longer know that its partitions are its own: it must end without saying anything."""


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
