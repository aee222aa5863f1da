"""Options that the audit's commands have in common, and how they read the journal by them."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Annotated

import typer
from rich.console import Console

from callyard.records import JOURNAL
from callyard.settings import KafkaSettings, Loaded, PolicySettings
from callyard.topics import topics
from streams.audit import progress
from streams.audit.entries import Entries, Told
from streams.audit.lines import Lines, plain
from streams.audit.reading import EmptyRangeError, Parser, Reading, Span, UnknownError, Unreadable, reading, warner
from streams.audit.times import MOMENT_HELP

FromOption = Annotated[str | None, typer.Option("--from", help=f"Start: {MOMENT_HELP}.")]
ToOption = Annotated[str | None, typer.Option("--to", help="End, in the same forms. Default: now.")]
ZoneOption = Annotated[str, typer.Option("--zone", help="Time zone of what is shown: UTC or an IANA name.")]
UnreadableOption = Annotated[Unreadable, typer.Option(help="What an unreadable record does: it is reported and …")]
SLACK_MS = 10_000
"""More than the journal's stamps can be behind those of what was decided, and brokers' clocks apart."""


def errors() -> Console:
    """Where warnings and progress go: standard error."""
    return Lines(stderr=True)


@dataclass
class Journal:
    """The journal of a range being read. Made by `journal`."""

    reading: Reading
    entries: Entries
    parser: Parser
    span: Span
    """What was asked for; what is read begins earlier, to know what lived then."""
    until_ms: int
    """The range's end, or now."""
    quiet: bool = False
    """A range without a decision is an answer, too."""
    inside: int = 0
    """Records read so far that are in the range itself."""

    async def told(self, keys: Collection[bytes] | None = None) -> AsyncIterator[Told]:
        """The decisions, each once, in the order of time; ``keys``: of these conferences only.

        Raises at the end, where no record was in the range itself: `EmptyRangeError`, `UnknownError` with ``keys``.
        """
        start = self.span.start_ms or 0
        async for batch in self.reading.batches():
            for record in batch:
                if keys is not None and record.key is not None and record.key not in keys:
                    continue
                self.inside += record.key is not None and record.timestamp >= start
                told = self.entries.take(record)
                if told is not None:
                    yield told
        if self.inside or self.quiet:
            return
        if keys is None:
            raise EmptyRangeError(f"the journal holds nothing from {self.span}")
        raise UnknownError(f"the journal holds nothing of {_names(keys)} from {self.span}")

    def findings(self) -> list[str]:
        """What is to be said of the journal itself, for people."""
        found = list(self.entries.missing)
        if more := self.entries.gaps - len(found):
            found.append(f"{more} more such gaps: run 'callyard audit verify'")
        if self.parser.skipped:
            found.append(f"{self.parser.skipped} unreadable records were skipped")
        if self.entries.void:
            found.append(f"{self.entries.void} records are void: an older owner of their partition spoke too late")
        return found


def _names(keys: Collection[bytes]) -> str:
    return "conference " + ", ".join(sorted(key.decode() for key in keys))


def lookback_ms(settings: Loaded) -> int:
    """How long before a moment all that was alive then was renewed, by the leases that are set now."""
    policy = settings[PolicySettings]
    return round(1000 * max(policy.registration_lease_seconds, policy.call_lease_seconds)) + SLACK_MS


@asynccontextmanager
async def journal(
    kafka: KafkaSettings, span: Span, *, before_ms: int, unreadable: Unreadable, what: str = "journal",
    conferences: Collection[str] | None = None, say: Callable[[str], None] | None = None, quiet: bool = False,
    tells: bool = False,
) -> AsyncIterator[Journal]:  # fmt: skip
    """The journal of a range, and ``before_ms`` milliseconds before it; ``conferences``: their partitions only.

    ``tells``: what is read goes to standard output meanwhile; where that is a terminal, a bar would stand in between.

    Raises `EmptyRangeError` where the range holds nothing of any conference; with ``quiet`` only where all that there
    is came later.
    """
    keys = None if conferences is None else [conference.encode() for conference in conferences]
    name, err = topics(kafka).journal.name, errors()
    if keys is not None and not quiet:
        # Whether there is anything at all: a conference's own partition may be empty where the journal isn't.
        async with reading(kafka, [name], span) as whole:
            whole.require_any()
    parser = Parser({name: JOURNAL}, unreadable, say or warner(err))
    earlier = span if span.start_ms is None else replace(span, start_ms=max(0, span.start_ms - before_ms))
    async with reading(kafka, [name], earlier, keys=keys) as found:
        began = found.oldest_ms is not None and (span.end_ms is None or found.oldest_ms < span.end_ms)
        if keys is None and not (quiet and began):
            found.require_any()
        with nullcontext() if tells and sys.stdout.isatty() else progress.shown(found, what, err):
            until = int(time.time() * 1000) if span.end_ms is None else span.end_ms
            yield Journal(found, Entries(parser), parser, span, until, quiet)


def out() -> Console:
    """Standard output for people's lines; as wide as they are."""
    return Lines()


def grid(names: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """Columns as wide as what is in them; a terminal may break the lines, a file doesn't."""
    lines = [names, *(tuple(map(plain, row)) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(names))]
    cells = ([f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)] for line in lines)
    return ("  " + "  ".join(line).rstrip() for line in cells)
