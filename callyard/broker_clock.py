"""The brokers' clock, as a worker knows it from its own deliveries.

Decisions and deadlines go by the time that a broker stamps on a record (``LogAppendTime``); workers' own clocks may be
wrong. A record was stamped no later than its delivery was confirmed here. So what a confirmation tells is never ahead
of the broker's clock, and behind it by at most the time that the confirmation took.
"""

from __future__ import annotations

from collections.abc import Callable

from aiokafka.structs import RecordMetadata

from callyard.fence import boottime

LOG_APPEND_TIME = 1
"""Of a record's timestamp type: the broker stamped it."""
PERIOD_SECONDS = 30.0
"""The best of this period and of the one before counts: so a clock set back is followed within two of them."""


class BrokerClock:
    """What time it is at the brokers, by a clock of this machine that counts suspension; never ahead of them."""

    def __init__(self, clock: Callable[[], float] = boottime) -> None:
        self._clock = clock
        self._began = float("-inf")
        self._before: float | None = None
        self._best: float | None = None

    def observe(self, delivered: RecordMetadata) -> None:
        """A record of this worker's own was confirmed just now. One that is read may be hours old and tells nothing."""
        if delivered.timestamp_type != LOG_APPEND_TIME:
            return
        now = self._clock()
        seen = delivered.timestamp - now * 1000
        if now - self._began > PERIOD_SECONDS:
            self._began, self._before, self._best = now, self._best, seen
        elif self._best is None or seen > self._best:
            self._best = seen

    def now_ms(self) -> int | None:
        """Milliseconds since 1970-01-01 UTC at the brokers; None before the first delivery."""
        known = [offset for offset in (self._before, self._best) if offset is not None]
        return int(self._clock() * 1000 + max(known)) if known else None
