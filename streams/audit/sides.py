"""What happened at a conference, a node or a gateway: printed as it is read, with counts at the end; bounded memory."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import tzinfo
from typing import Any, Literal

import orjson
import typer

from callyard.settings import KafkaSettings
from streams.audit.happenings import ROUTINE, Happening, Telling, What
from streams.audit.invariants import Waits
from streams.audit.options import journal, out
from streams.audit.reading import Span, UnknownError, Unreadable
from streams.audit.render import line
from streams.audit.times import lasted


@dataclass(frozen=True)
class Side:
    """Whose side it is told from."""

    kind: Literal["conference", "node", "gateway"]
    name: str

    def has(self, happening: Happening) -> bool:
        """Whether a happening is of this side."""
        if self.kind == "conference":
            return happening.conference == self.name
        if self.kind == "gateway":
            return happening.stay is not None and happening.stay.gateway_id == self.name
        return happening.node_id == self.name and happening.what is not What.PARKED


@dataclass(frozen=True)
class View:
    """How it is shown."""

    json: bool
    full: bool
    zone: tzinfo


@dataclass
class Totals:
    """What is counted on the way."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    waited: Waits = field(default_factory=Waits)

    def take(self, happening: Happening) -> None:
        """Count a happening."""
        self.counts[happening.what.value] += 1
        reason = happening.details.get("reason")
        if happening.what is What.FAILED:
            self.failures[str(reason or "unknown")] += 1
        elif happening.what is What.NO_OUTCOME:
            self.failures[What.NO_OUTCOME.value] += 1
        elif happening.what is What.LEFT:
            self.ends[str(reason or "unknown")] += 1
        elif happening.what is What.CONNECTED and happening.stay is not None:
            self.waited.add(happening.stay.connected_ms - happening.stay.since_ms)

    def as_dict(self) -> dict[str, Any]:
        """As it stands in JSON."""
        return {
            "counts": dict(sorted(self.counts.items())),
            "failures": dict(self.failures.most_common()),
            "ends": dict(self.ends.most_common()),
            "waits_ms": self.waited.spread(),
        }


async def tell(
    kafka: KafkaSettings, side: Side, span: Span, view: View, *, before_ms: int, unreadable: Unreadable
) -> list[str]:  # fmt: skip
    """Print what happened at this side, then the counts; returns the findings about the journal itself.

    Raises `UnknownError` where nothing did, and as `journal` does.
    """
    console, telling, totals = out(), Telling(), Totals()
    start_ms = span.start_ms or 0
    only = [side.name] if side.kind == "conference" else None
    first: int | None = None
    async with journal(
        kafka, span, before_ms=before_ms, unreadable=unreadable, what=side.kind, conferences=only, tells=True
    ) as found:
        keys = None if only is None else {side.name.encode()}
        async for told in found.told(keys):
            for happening in telling.take(told):
                if told.at_ms < start_ms or not side.has(happening):
                    continue
                totals.take(happening)
                if happening.what in ROUTINE and not view.full:
                    continue
                first = happening.at_ms if first is None else first
                if view.json:
                    typer.echo(orjson.dumps(happening.as_dict()))
                    continue
                for text in line(happening, first, view.zone, whose=True):
                    console.print(text)
        findings = found.findings()
    if not totals.counts:
        raise UnknownError(f"{side.kind} {side.name}: nothing is said of it in the journal from {span}")
    if view.json:
        typer.echo(orjson.dumps({"totals": totals.as_dict(), "findings": findings}))
    else:
        for text in _lines(totals):
            console.print(text)
    return findings


def _lines(totals: Totals) -> list[str]:
    told = ["", "counted: " + _said(totals.counts)]
    if totals.failures:
        told.append("failures: " + _said(totals.failures))
    if totals.ends:
        told.append("ended by: " + _said(totals.ends))
    spread = totals.waited.spread()
    if spread.pop("count"):
        told.append("waits until connected: " + ", ".join(f"{name} {lasted(ms)}" for name, ms in spread.items()))
    return told


def _said(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
