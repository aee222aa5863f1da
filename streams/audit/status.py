"""What an operator asks first: does it work, and what is to be done. The facts, and what is wrong with them; pure.

Only what keeps callers from getting through is wrong; what may become so, or only looks so, is a warning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from callyard.doctor import Finding, Findings, status

STABLE, EMPTY = "Stable", frozenset({"Empty", "Dead"})
WAITS_MS = 30_000
"""Longer than a dial, its next attempt and a hook's renewal take together."""
REJECTED_MS = 3_600_000


@dataclass(frozen=True)
class Member:
    """A worker in a consumer group: ``partitions`` are its own."""

    client: str
    host: str
    partitions: tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """A consumer group as its broker knows it."""

    name: str
    state: str
    members: tuple[Member, ...]


@dataclass(frozen=True)
class Lag:
    """How far a topic, or a gateway's partition of one, is read."""

    undecided: int
    """Records that are there and not read yet."""
    stale: int
    """Those of them that were there when the patience began."""


@dataclass(frozen=True)
class Gateway:
    """A gateway, by its agents' group and by the callers that the table knows there."""

    id: str
    group: Group
    partition: int
    lag: Lag
    callers: int

    @property
    def owner(self) -> Member | None:
        """Who speaks for it."""
        return next((member for member in self.group.members if self.partition in member.partitions), None)


@dataclass
class Status:
    """All that was seen; what could not be looked at is None or missing, and told in ``blind``."""

    servers: str
    at_ms: int
    patience_seconds: float
    unreachable: str = ""
    topics: list[str] = field(default_factory=list)
    """What is wrong with the topics."""
    blind: list[str] = field(default_factory=list)
    """What could not be looked at, and why."""
    newest_ms: dict[str, int | None] = field(default_factory=dict)
    """When the newest record of each topic was stamped; None: it is empty."""
    rejected: str = ""
    """The name of the topic of rejected records."""
    partitions: int = 0
    stream: Group | None = None
    inputs: dict[str, Lag] = field(default_factory=dict)
    gateways: list[Gateway] = field(default_factory=list)
    registrations: int = 0
    callers: Mapping[str, int] = field(default_factory=dict)
    """How many, by state."""
    stuck: tuple[str, ...] = ()
    """Conferences that are registered, and whose callers wait all the same."""

    def as_dict(self) -> dict[str, Any]:
        """As it stands in JSON."""
        found = self.findings()
        gateways = [{**asdict(one), "owner": asdict(one.owner) if one.owner else None} for one in self.gateways]
        return {"wrong": bool(status(found)), **asdict(self), "gateways": gateways,
                "findings": [finding._asdict() for finding in found]}  # fmt: skip

    def findings(self) -> list[Finding]:
        """What is wrong, or may be, and what to do."""
        if self.unreachable:
            found = Findings("kafka")
            found.wrong(self.unreachable, "start Kafka, or check the network, TLS and credentials (CALLYARD_KAFKA_…)")
            return found.all
        topics, kafka = Findings("topics"), Findings("kafka")
        for problem in self.topics:
            topics.wrong(problem, "run 'callyard topics' where its settings are right")
        for text in self.blind:
            kafka.wrong(text, "give this user the rights of an auditor (docs/operators.md)")
        found_all = [*kafka.all, *topics.all, *self._stream(), *self._gateways(), *self._callers()]
        if not found_all:
            topics.fine("nothing is wrong")
            return topics.all
        return found_all

    def _stream(self) -> list[Finding]:
        found = Findings("stream")
        if self.stream is None:
            return []
        owned = {number for member in self.stream.members for number in member.partitions}
        if self.stream.state in EMPTY:
            found.wrong("no stream worker runs: nobody is put through", "start 'callyard stream', two of them")
        elif self.stream.state != STABLE:
            found.warn("the group is giving out its partitions", "look again in half a minute")
        elif missing := sorted(set(range(self.partitions)) - owned):
            found.wrong(f"nobody decides for partitions {ranges(missing)}", "restart the stream workers one by one")
        elif len(self.stream.members) == 1:
            found.warn("there is one stream worker: nobody is put through while it restarts", "run two")
        for topic, lag in self.inputs.items():
            if lag.stale and self.stream.state not in EMPTY:
                found.wrong(
                    f"{topic}: {lag.stale} records are undecided since {self.patience_seconds:g} s or longer",
                    "look at the stream workers' log and load; more workers share the partitions",
                )
        return found.all

    def _gateways(self) -> list[Finding]:
        found = Findings("gateway")
        for gateway in self.gateways:
            callers = f"; {gateway.callers} callers are there" if gateway.callers else ""
            if gateway.group.state in EMPTY:
                found.wrong(
                    f"{gateway.id}: no agent runs{callers}",
                    "start 'callyard agent' there; where the gateway is gone for good: kafka-consumer-groups --delete"
                    f" --group {gateway.group.name}",
                )
            elif gateway.group.state == STABLE and gateway.owner is None:
                found.wrong(f"{gateway.id}: no agent speaks for it{callers}", "restart its agents")
            elif gateway.lag.stale:
                found.wrong(
                    f"{gateway.id}: {gateway.lag.stale} instructions wait since {self.patience_seconds:g} s or longer",
                    "look at the agent's log: does Asterisk answer it?",
                )
        return found.all

    def _callers(self) -> list[Finding]:
        found = Findings("callers")
        if self.stuck:
            shown = ", ".join(self.stuck[:5]) + (" …" if len(self.stuck) > 5 else "")
            found.warn(
                f"callers wait though their conference has been registered for half a minute: {shown}",
                "'callyard audit conference NUMBER' says why: refused, unreachable, or removed from it",
            )
        newest = self.newest_ms.get(self.rejected)
        if newest is not None and self.at_ms - newest < REJECTED_MS:
            found.warn(
                f"something unreadable was set aside onto {self.rejected} within the last hour",
                "each worker logs and counts what it sets aside, with the reason (docs/metrics.md)",
            )
        return found.all


def ranges(numbers: Sequence[int]) -> str:
    """Sorted numbers in short: ``0-3, 7``."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)
