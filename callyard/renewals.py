"""Spreads renewals: each lease is renewed once in its period, and those of a thousand are no burst.

A burst of renewals would stand before whatever is new: the opening of a conference waited for them.
"""

from __future__ import annotations

import random
from collections.abc import Iterable


class Renewals:
    """Which of a changing set of keys are to be renewed now. Times are seconds of a monotonic clock."""

    TICKS = 40
    """How often in a period to ask."""

    def __init__(self, every_seconds: float) -> None:
        self._every = every_seconds
        self._due: dict[str, float] = {}

    @property
    def tick_seconds(self) -> float:
        """How long to wait between two questions."""
        return self._every / self.TICKS

    def due(self, keys: Iterable[str], now: float) -> list[str]:
        """The keys to renew now. A key that is new here comes within a period, at a time by chance."""
        self._due = {
            key: self._due.get(key, now + self._every * random.uniform(0.3, 0.9))  # noqa: S311 - spreads the load
            for key in keys
        }
        found = [key for key, when in self._due.items() if when <= now]
        for key in found:
            # A tick early: the answer to the question after the next one would come too late.
            self._due[key] = now + self._every - self.tick_seconds
        return found
