"""What an audit finds wrong: counted by kind, the first of each kind kept with its place. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

KEPT = 20


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong."""

    kind: str
    """What sort of thing; a word or two, the same for all of its sort."""
    where: str
    """The place in Kafka (``callyard.journal-3@1204``), the conference, or the checkpoint."""
    text: str


class Findings:
    """Collects findings with a bounded memory."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.kept: list[Finding] = []
        self.muted = False
        """While set, nothing is noted: what is read only to know how things stood is not judged."""

    def add(self, kind: str, where: str, text: str) -> None:
        """Note a finding; beyond `KEPT` of its kind it is only counted."""
        if self.muted:
            return
        self.counts[kind] += 1
        if self.counts[kind] <= KEPT:
            self.kept.append(Finding(kind, where, text))

    def extend(self, other: Findings) -> None:
        """Note what another one holds."""
        for kind, count in other.counts.items():
            room = max(0, KEPT - self.counts[kind])
            self.kept += [one for one in other.kept if one.kind == kind][:room]
            self.counts[kind] += count

    @property
    def total(self) -> int:
        return sum(self.counts.values())
