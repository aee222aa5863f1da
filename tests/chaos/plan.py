"""What conferences and callers do: a pure function of the seed.

Each conference number is used for one meeting and never again, so that who called for it can be told at any time. A
meeting opens on a node, may close, and may open again on another one; callers come before and after, and some of them
hang up while they wait or talk. Times are seconds since the beginning.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

FIRST_NUMBER = 5_000_000
"""Seven digits: a number of which one is lost on the way is no other meeting's."""
WAVE_SECONDS = 20.0
"""Callers who come within so many seconds are one SIPp: each costs some percent of a core, even when idle."""
REMAIN_SECONDS = 40.0
"""After the last close of a meeting its callers hang up within this time."""

LENGTH_SECONDS = 90.0
"""From the first caller of a meeting to about its last close."""


@dataclass(frozen=True)
class Session:
    """A meeting's time on a node."""

    node: int
    opens: float
    closes: float | None
    """None: open until the end of the run."""


@dataclass(frozen=True)
class Meeting:
    """A conference number and where it runs when; without any session it opens only at the end of the run."""

    conference: str
    sessions: tuple[Session, ...]


@dataclass(frozen=True)
class Caller:
    """One caller."""

    number: str
    conference: str
    comes: float
    hangs_up: float | None
    """None: stays until the end of the run."""


@dataclass(frozen=True)
class Plan:
    """All of it, callers in the order of their coming."""

    meetings: tuple[Meeting, ...]
    callers: tuple[Caller, ...]

    def waves(self) -> list[tuple[float, tuple[Caller, ...]]]:
        """The callers in groups that come together, with the time of the first one."""
        found: dict[int, list[Caller]] = {}
        for caller in self.callers:
            found.setdefault(int(caller.comes // WAVE_SECONDS), []).append(caller)
        return [(group[0].comes, tuple(group)) for _, group in sorted(found.items())]


def plan(seed: int, callers: int, seconds: float, nodes: int, a_meeting: int = 8) -> Plan:
    """So many callers in meetings spread over so many seconds, ``a_meeting`` callers in each on average."""
    chance = random.Random(f"plan {seed}")
    count = max(1, callers // a_meeting)
    length = min(LENGTH_SECONDS, 0.6 * seconds)
    meetings = []
    for number in range(count):
        begins = (number + chance.random()) * max(1.0, seconds - 0.4 * length) / count
        meetings.append((begins, _meeting(chance, str(FIRST_NUMBER + number), begins, length, seconds, nodes)))
    coming = []
    for number in range(callers):
        begins, meeting = meetings[number % count]
        coming.append(_caller(chance, f"+4930{2_000_000 + number}", meeting, begins, length, seconds))
    return Plan(tuple(meeting for _, meeting in meetings), tuple(sorted(coming, key=lambda one: one.comes)))


def _meeting(
    chance: random.Random, conference: str, begins: float, length: float, seconds: float, nodes: int
) -> Meeting:  # fmt: skip
    sessions: list[Session] = []
    at, node = begins + chance.uniform(0.1, 0.35) * length, chance.randrange(nodes)
    for _ in range(chance.choice((1, 1, 2, 3))):
        if at > seconds:
            break
        closes = at + chance.uniform(0.25, 0.5) * length
        sessions.append(Session(node, round(at, 3), round(closes, 3) if closes < seconds else None))
        at = closes + chance.choice((0.0, chance.uniform(0.05, 0.2) * length))
        node = (node + chance.randrange(1, nodes)) % nodes if nodes > 1 else 0
    return Meeting(conference, tuple(sessions))


def _caller(
    chance: random.Random, number: str, meeting: Meeting, begins: float, length: float, seconds: float
) -> Caller:  # fmt: skip
    comes = min(begins + chance.uniform(0, 0.7) * length, seconds - 0.5)
    closes = meeting.sessions[-1].closes if meeting.sessions else None
    hangs_up: float | None = None
    if chance.random() < 0.4:
        hangs_up = comes + 3 + chance.expovariate(2 / length)
    elif closes is not None:
        hangs_up = max(closes, comes) + chance.uniform(0.3, 1) * REMAIN_SECONDS
    if hangs_up is not None and hangs_up > seconds:
        hangs_up = None
    return Caller(number, meeting.conference, round(comes, 3), None if hangs_up is None else round(hangs_up, 3))
