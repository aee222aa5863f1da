"""Find calls in the journal, and gather the stories of those that were found."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

import orjson

from callyard.records import JournalEntry
from callyard.settings import KafkaSettings
from streams.audit.entries import Told
from streams.audit.happenings import ROUTINE, Telling, What
from streams.audit.options import journal
from streams.audit.reading import Span, UnknownError, Unreadable
from streams.audit.story import Story
from streams.rows import ACTIVE

CLOCK_SLACK_MS = 3_600_000
"""A gateway's clock, which a call id's number is of, may be that far ahead of the brokers'."""
_UNIQUEID_TIME = re.compile(r"(?:^|[-/])(\d{9,11})\.\d+$")


@dataclass(frozen=True)
class Wanted:
    """What is asked for: a call by its id, all calls of a caller's number (in any of these forms), of a conference."""

    call_id: str | None = None
    callers: frozenset[str] = frozenset()
    conference: str | None = None

    def __str__(self) -> str:
        said = [f"call {self.call_id}"] if self.call_id else []
        said += ["caller " + " or ".join(sorted(self.callers))] if self.callers else []
        said += [f"conference {self.conference}"] if self.conference else []
        return ", ".join(said)

    @property
    def needles(self) -> tuple[bytes, ...]:
        """Bytes of which each entry about such a call holds one; none: any entry may be."""
        if self.call_id:
            return (orjson.dumps(self.call_id),)
        return tuple(orjson.dumps(caller) for caller in sorted(self.callers))

    def calls(self, entry: JournalEntry) -> set[str]:
        """The calls that are asked for, of those whose stays an entry changed."""
        if self.conference not in {None, entry.conference}:
            return set()
        stays = [change for change in entry.changes if change.get("set") == "stay"]
        return {
            str(stay["call_id"])
            for stay in stays
            if self.call_id in {None, stay["call_id"]} and (not self.callers or stay.get("caller") in self.callers)
        }


def start_of(call_id: str) -> int | None:
    """When a call began, in milliseconds since 1970-01-01 UTC, as its id tells (the gateway's clock); None: it doesn't.

    So a call is found without reading all that was before it.
    """
    found = _UNIQUEID_TIME.search(call_id)
    return None if found is None else int(found[1]) * 1000


@dataclass
class Found:
    """The stories of a range."""

    stories: list[Story]
    findings: list[str]
    until_ms: int


async def find(
    kafka: KafkaSettings, wanted: Wanted, span: Span, *, before_ms: int, unreadable: Unreadable
) -> Found:  # fmt: skip
    """The stories of all calls that are asked for. Raises `UnknownError` where there is none, and as `journal` does.

    Two passes: one finds which calls and where, parsing only entries that hold what is asked for; one tells them, from
    the partitions of their conferences.
    """
    calls: set[str] = set()
    conferences: set[str] = set()
    only = None if wanted.conference is None else [wanted.conference]
    async with journal(
        kafka, span, before_ms=0, unreadable=unreadable, what="finding", conferences=only, say=lambda _: None
    ) as found:
        needles, key = wanted.needles, None if wanted.conference is None else wanted.conference.encode()
        async for batch in found.reading.batches():
            for record in batch:
                value = record.value or b""
                if key is not None and record.key != key:
                    continue
                if needles and not any(needle in value for needle in needles):
                    continue
                entry = found.parser.read(record)
                if isinstance(entry, JournalEntry) and (ids := wanted.calls(entry)):
                    calls |= ids
                    conferences.add(entry.conference)
    if not calls:
        raise UnknownError(f"{wanted}: no such call in the journal from {span}")
    return await tell(kafka, calls, conferences, span, before_ms=before_ms, unreadable=unreadable)


async def tell(
    kafka: KafkaSettings, calls: set[str], conferences: set[str], span: Span, *, before_ms: int, unreadable: Unreadable
) -> Found:  # fmt: skip
    """The stories of these calls, which are at these conferences, in the order of their beginning."""
    gathering = Gathering(calls)
    async with journal(
        kafka, span, before_ms=before_ms, unreadable=unreadable, what="telling", conferences=conferences
    ) as found:
        async for told in found.told({conference.encode() for conference in conferences}):
            gathering.take(told)
    stories = list(gathering.stories.values())
    for story in stories:
        story.close(found.until_ms)
    stories = sorted((story for story in stories if story.stays), key=lambda s: s.stays[0].since_ms)
    return Found(stories, found.findings(), found.until_ms)


class Gathering:
    """Stories of some calls, from the decisions about the conferences that they are at; an entry costs what it says."""

    def __init__(self, calls: Collection[str] | None) -> None:
        """``calls``: their ids; None: all, without what happened to them in full (whoever takes them drops them)."""
        self.stories = {call_id: Story(call_id) for call_id in sorted(calls or ())}
        self._all = calls is None
        self._telling = Telling()
        self._at: dict[str, set[str]] = {}
        """The calls that wait or talk, by conference."""

    def take(self, told: Told) -> set[str]:
        """Take the next decision; returns the calls that it concerned."""
        conference, now = told.entry.conference, told.entry.now_ms
        at = self._at.setdefault(conference, set())
        before = self._telling.fold.desks.get(conference)
        was_live = before is not None and bool(before.live())
        touched: set[str] = set()
        for happening in self._telling.take(told):
            if happening.stay is None:
                concerned = set() if happening.what in ROUTINE else at
            else:
                if self._all and happening.what is not What.NOTICED:
                    call_id = happening.stay.call_id
                    self.stories.setdefault(call_id, Story(call_id, keep=False))
                concerned = {happening.stay.call_id} & self.stories.keys()
            for call_id in concerned:
                self.stories[call_id].take(happening)
            touched |= concerned
        desk = self._telling.fold.desks.get(conference)
        if (desk is not None and bool(desk.live())) != was_live:
            touched |= at
        for call_id in touched:
            story = self.stories[call_id]
            story.look(desk, now)
            if story.conference == conference and story.last.state in ACTIVE:
                at.add(call_id)
            else:
                at.discard(call_id)
        return touched

    def drop(self, call_id: str) -> None:
        """Forget a call; what is said of it later begins its story anew."""
        story = self.stories.pop(call_id)
        for stay in story.stays:
            self._at.get(stay.conference, set()).discard(call_id)
