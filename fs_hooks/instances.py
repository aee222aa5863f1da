"""The instances of conferences that one source knows, and what changes by what it says. Pure: no IO, no clock.

Conferences are known by instance, never by number alone: a number can be re-created at once, and its old instance's end
must not end the new one. The rules are the same for both sources (`conferences`, `meetings`), because both have events
that come out of order and a list that is older than the events around it:

* An ended instance is remembered as ended (`REMEMBERED` of them) and nothing brings it back; ids are never used twice.
* Only an instance that was known before the question was sent can end by being absent from its answer; the next answer
  decides about the others.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from callyard.records import CONFERENCE_PATTERN, Source, UnregisterReason

REMEMBERED = 10_000
"""How many ended instances, and how many left out, are remembered: some days of a busy node, a few megabytes."""
NOTHING_EXCLUDED = re.compile(r"(?!)")

_INSTANCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_NUMBER = re.compile(CONFERENCE_PATTERN[1:-1])


@dataclass(frozen=True)
class Conference:
    """One instance of a conference on this node, as one source knows it."""

    number: str
    instance_id: str
    opened_at_ms: int | None = None
    """The source's own clock."""
    source: Source = Source.FREESWITCH

    @property
    def key(self) -> str:
        """Unique on this node: the sources name their instances independently."""
        return f"{self.source.value}|{self.instance_id}"


@dataclass(frozen=True)
class Opened:
    """A conference is there that wasn't known."""

    conference: Conference


@dataclass(frozen=True)
class Ended:
    """A conference that was known is no longer there, or (``lost``) can't be vouched for."""

    conference: Conference
    reason: UnregisterReason


Change = Opened | Ended


@dataclass(frozen=True)
class Listed:
    """One entry of a source's list."""

    number: str
    instance_id: str
    opened_at_ms: int | None = None


def is_instance(text: str) -> bool:
    """Whether this can be an instance's id."""
    return _INSTANCE.fullmatch(text) is not None


class Instances:
    """What one source knows; each method returns what changed by it."""

    def __init__(
        self, source: Source, excluded: re.Pattern[str] = NOTHING_EXCLUDED, remembered: int = REMEMBERED
    ) -> None:
        self._source = source
        self._excluded = excluded
        self._live: dict[str, Conference] = {}
        self._known_since: dict[str, int] = {}
        self._question = 0
        self._ended = Memory(remembered)
        self._left_out = Memory(remembered)
        self.left_out: Counter[str] = Counter()
        """How many instances were not registered: ``excluded`` by the settings, ``not-a-number``."""

    @property
    def live(self) -> Mapping[str, Conference]:
        """The conferences that are there, by instance id."""
        return self._live

    def open(self, number: str, instance: str, opened_at_ms: int | None) -> list[Change]:
        """An instance is there."""
        if instance in self._live or instance in self._ended:
            return []
        excluded = self._excluded.fullmatch(number) is not None
        if excluded or _NUMBER.fullmatch(number) is None:
            if self._left_out.add(instance):
                self.left_out["excluded" if excluded else "not-a-number"] += 1
            return []
        at = opened_at_ms if opened_at_ms is None or opened_at_ms > 0 else None
        conference = Conference(number, instance, at, self._source)
        self._live[instance] = conference
        self._known_since[instance] = self._question
        return [Opened(conference)]

    def end(self, instance: str) -> list[Change]:
        """An instance has ended, for good, whether or not it was known."""
        self._ended.add(instance)
        conference = self._live.pop(instance, None)
        self._known_since.pop(instance, None)
        return [] if conference is None else [Ended(conference, UnregisterReason.ENDED)]

    def ask(self) -> int:
        """Note that a list is about to be asked for; the number goes into `reconcile` with its answer."""
        self._question += 1
        return self._question

    def reconcile(self, question: int, listed: Iterable[Listed]) -> list[Change]:
        """Apply the answer to a question."""
        changes: list[Change] = []
        there = set()
        for entry in listed:
            there.add(entry.instance_id)
            changes += self.open(entry.number, entry.instance_id, entry.opened_at_ms)
        for instance in [i for i, since in self._known_since.items() if since < question and i not in there]:
            changes += self.end(instance)
        return changes

    def lost(self) -> list[Change]:
        """The source can't be reached: vouch for none. The same instances may be found again."""
        changes: list[Change] = [Ended(conference, UnregisterReason.LOST) for conference in self._live.values()]
        self._live.clear()
        self._known_since.clear()
        return changes


class Memory:
    """The newest so many of what was added."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: OrderedDict[str, None] = OrderedDict()

    def __contains__(self, item: str) -> bool:
        return item in self._held

    def add(self, item: str) -> bool:
        """Remember it; whether it is new."""
        new = item not in self._held
        self._held[item] = None
        self._held.move_to_end(item)
        if len(self._held) > self._most:
            self._held.popitem(last=False)
        return new

    def discard(self, item: str) -> None:
        """Forget it, if it was remembered."""
        self._held.pop(item, None)

    def clear(self) -> None:
        """Forget all."""
        self._held.clear()
