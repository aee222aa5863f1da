"""What was seen in a run, as plain records; `tests.chaos.verdict` judges nothing else.

All times are seconds since 1970-01-01 UTC by this machine's clock, which is the SIPps', the broker's and the doubles'.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class SeenCaller:
    """A caller as his SIPp saw him."""

    number: str
    conference: str
    """What he entered."""
    answered: float | None
    over: float | None
    """When his call ended; None: it was never answered, or nobody saw its end."""
    how: str
    """``left`` (he hung up), ``ended`` (the gateway did), ``aborted`` (both at once, or SIPp gave up), or nothing."""
    told_to_leave: float | None = None
    """When he was told to hang up."""


@dataclasses.dataclass(frozen=True)
class Leg:
    """A call that a node took, as its SIPp saw it."""

    node: str
    call_id: str
    caller: str
    conference: str
    called: float
    """When the INVITE came."""
    over: float | None
    how: str
    """As `SeenCaller.how`, from the node's side: ``left`` is the node's own hanging up."""


@dataclasses.dataclass(frozen=True)
class Opened:
    """A conference that ran on a node."""

    conference: str
    node: str
    opened: float
    closed: float | None


@dataclasses.dataclass(frozen=True)
class Dial:
    """A dial as Asterisk announced it (DialBegin), by the mark on the caller's channel."""

    call_id: str
    """Callyard's: gateway and uniqueid."""
    stay: int
    attempt: int
    conference: str
    at: float


@dataclasses.dataclass(frozen=True)
class Record:
    """A record of Kafka."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()


@dataclasses.dataclass(frozen=True)
class Facts:
    """All of it."""

    callers: Sequence[SeenCaller]
    legs: Sequence[Leg]
    openings: Sequence[Opened]
    outside: Sequence[str]
    """Callers who, at the end, were not in their conference although it ran."""
    dials: Sequence[Dial]
    journal: Sequence[Record]
    instructions: Sequence[Record]
    calls: Sequence[Record]
    changelog: Sequence[Record]
    inputs: int
    """Records on the topics of registrations and calls together."""
    timers: str
    """The name of the timers' topic."""

    def as_dict(self) -> Mapping[str, Any]:
        """What isn't Kafka's, for a failing run's folder."""
        names = ("callers", "legs", "openings", "dials")
        lists = {name: [dataclasses.asdict(one) for one in getattr(self, name)] for name in names}
        return {**lists, "outside": list(self.outside), "inputs": self.inputs}
