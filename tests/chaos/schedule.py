"""What fails when: a pure function of the seed. The same seed gives the same schedule, byte for byte.

Times are seconds since the beginning; a fault whose target is still busy with an earlier one begins when that is over
(see `tests.chaos.faults`).
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from enum import Enum

import orjson

STREAMS, AGENTS = 2, 2
SESSION_SECONDS = 3.0
"""The stream workers' session in the consumer group; the agents' is 6 s and no setting."""
AGENT_SESSION_SECONDS = 6.0

JITTER = 0.3
"""How far from its place a fault may be, as a share of the time between two of its kind."""


class Kind(str, Enum):
    """A kind of fault."""

    KILL_STREAM = "kill-stream"
    FREEZE_STREAM = "freeze-stream"
    CUT_STREAM = "cut-stream"
    HOLD_STREAM = "hold-stream"
    KILL_AGENT = "kill-agent"
    CUT_AGENT = "cut-agent"
    KILL_HOOK = "kill-hook"
    KILL_BROKER = "kill-broker"
    CUT_AMI = "cut-ami"
    STALL_AMI = "stall-ami"
    DELAY_AMI = "delay-ami"
    SPLIT_AMI = "split-ami"
    CUT_ESL = "cut-esl"
    STALL_ESL = "stall-esl"
    DELAY_ESL = "delay-esl"
    SPLIT_ESL = "split-esl"


OUTSIDE = frozenset({Kind.HOLD_STREAM})
"""Kinds that only happen where they are asked for: they show a known limit (docs/limits.md, the last one)."""
USUAL = tuple(kind for kind in Kind if kind not in OUTSIDE)

_LENGTHS: Mapping[Kind, tuple[float, float]] = {
    Kind.KILL_STREAM: (0.0, 1.5),
    Kind.FREEZE_STREAM: (SESSION_SECONDS + 0.5, SESSION_SECONDS + 2.5),
    Kind.CUT_STREAM: (SESSION_SECONDS + 0.5, SESSION_SECONDS + 2.5),
    Kind.HOLD_STREAM: (SESSION_SECONDS + 0.5, SESSION_SECONDS + 2.5),
    Kind.KILL_AGENT: (0.0, 1.5),
    Kind.CUT_AGENT: (AGENT_SESSION_SECONDS + 0.5, AGENT_SESSION_SECONDS + 2.0),
    Kind.KILL_HOOK: (0.0, 1.5),
    Kind.KILL_BROKER: (0.0, 1.0),
    Kind.CUT_AMI: (0.0, 0.0),
    Kind.STALL_AMI: (1.0, 4.0),
    Kind.DELAY_AMI: (2.0, 5.0),
    Kind.SPLIT_AMI: (2.0, 5.0),
    Kind.CUT_ESL: (0.0, 0.0),
    Kind.STALL_ESL: (1.0, 4.0),
    Kind.DELAY_ESL: (2.0, 5.0),
    Kind.SPLIT_ESL: (2.0, 5.0),
}
"""Shortest and longest time, in seconds, that a fault of the kind lasts: down, frozen, or the proxy's mode."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """One fault."""

    at: float
    kind: Kind
    target: int
    """Which of the workers, or of their proxies, counted from 0; of the one broker always 0."""
    seconds: float
    """How long it lasts."""
    delay_seconds: float = 0.0
    """Of the kinds ``delay-…``."""
    refuse: bool = False
    """Of the kinds that drop bytes: new connections are refused, not swallowed."""

    @property
    def lane(self) -> str:
        """What it happens to: faults of one lane never overlap."""
        what = self.kind.value.split("-")[1]
        if self.kind in {Kind.CUT_STREAM, Kind.HOLD_STREAM, Kind.CUT_AGENT}:
            return f"kafka-{what}-{self.target + 1}"
        return "broker" if what == "broker" else f"{what}-{self.target + 1}"


def schedule(seed: int, counts: Mapping[Kind, int], mean_seconds: float, nodes: int) -> tuple[Fault, ...]:
    """So many faults of each kind, in random order, so many seconds apart on average.

    Those of one kind are spread over the whole time, with a pause between any two: a broker that is killed again the
    moment it is back would only be a long outage.
    """
    chance = random.Random(f"schedule {seed}")
    seconds = mean_seconds * sum(counts.values())
    faults = []
    for kind in Kind:
        for number in range(counts.get(kind, 0)):
            at = (number + 0.5 + chance.uniform(-JITTER, JITTER)) * seconds / counts[kind]
            faults.append(_fault(chance, at, kind, nodes))
    return tuple(sorted(faults, key=lambda fault: fault.at))


def _fault(chance: random.Random, at: float, kind: Kind, nodes: int) -> Fault:
    what = kind.value.split("-")[1]
    target = chance.randrange({"stream": STREAMS, "agent": AGENTS, "ami": AGENTS, "broker": 1}.get(what, nodes))
    seconds = chance.uniform(*_LENGTHS[kind])
    delay = chance.uniform(0.05, 0.8) if kind in {Kind.DELAY_AMI, Kind.DELAY_ESL} else 0.0
    drops = kind in {Kind.CUT_STREAM, Kind.CUT_AGENT, Kind.STALL_AMI, Kind.STALL_ESL}
    refuse = drops and chance.random() < 0.3
    return Fault(round(at, 3), kind, target, round(seconds, 3), round(delay, 3), refuse)


def as_json(faults: Sequence[Fault]) -> bytes:
    """A schedule as JSON lines."""
    return b"".join(orjson.dumps(dataclasses.asdict(fault)) + b"\n" for fault in faults)
