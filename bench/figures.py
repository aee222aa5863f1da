"""What a measurement comes to: percentiles, aims, ratios. Pure; no clock, no IO."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Spread:
    """How measured values are spread: milliseconds, each one that was measured (nearest rank), none interpolated."""

    count: int
    p50: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, milliseconds: Iterable[float]) -> Spread:
        """The spread of these values. Raises `ValueError` where there is none."""
        values = sorted(milliseconds)
        if not values:
            raise ValueError("nothing was measured")
        return cls(len(values), *(round(percentile(values, share), 3) for share in (0.5, 0.95, 0.99, 1.0)))


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of the sorted values that at least this share (0 to 1) of them doesn't exceed."""
    return values[max(0, math.ceil(share * len(values)) - 1)]


@dataclasses.dataclass(frozen=True)
class Aim:
    """A figure beside what is aimed at."""

    name: str
    value: float
    bound: float
    at_least: bool = False
    """Whether the bound is the least; otherwise it is the most."""

    @property
    def met(self) -> bool:
        """Whether the aim was reached."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def as_dict(self) -> dict[str, Any]:
        """The aim as it is written to JSON."""
        return {**dataclasses.asdict(self), "met": self.met}


def aims(openings: Spread | None, floor: Spread | None, polling: Spread | None) -> list[Aim]:
    """What this project aims at, as far as it was measured."""
    found = []
    if openings is not None and floor is not None:
        found.append(Aim("p50 / the floor's p50", round(openings.p50 / floor.p50, 2), 2.0))
    if openings is not None:
        found.append(Aim("p99, ms", openings.p99, 60.0))
    if openings is not None and polling is not None:
        found.append(Aim("polling's p50 / p50", round(polling.p50 / openings.p50, 1), 100.0, at_least=True))
    return found
