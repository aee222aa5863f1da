"""``callyard table``: which conference runs where and who waits, now, at a moment, or between two."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from datetime import tzinfo
from typing import Annotated

import orjson
import typer

from callyard.options import ConfigOption, JsonOption
from callyard.settings import KafkaSettings, Loaded, PolicySettings, load
from streams.audit.fold import Fold
from streams.audit.options import UnreadableOption, ZoneOption, errors, grid, journal, lookback_ms, out
from streams.audit.present import read_present
from streams.audit.reading import Span, Unreadable
from streams.audit.table import CallerLine, Difference, RegistrationLine, Table, differences, table_of
from streams.audit.times import MOMENT_HELP, lasted, moment, shown, zone_of

app = typer.Typer(add_completion=False, help=__doc__)


@app.command(name="table")
def command(
    conference: Annotated[str | None, typer.Argument(help="Only this conference number.")] = None,
    as_of: Annotated[str | None, typer.Option(help=f"As it was then: {MOMENT_HELP}.")] = None,
    diff: Annotated[
        tuple[str, str] | None, typer.Option(metavar="T1 T2", help="What changed between two moments.")
    ] = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="Read the journal from its beginning, not from a lease before.")
    ] = False,
    zone: ZoneOption = "UTC",
    unreadable: UnreadableOption = Unreadable.SKIP,
    json: JsonOption = False,
    config: ConfigOption = None,
) -> None:  # fmt: skip
    """Show the live registrations and the callers that wait, are dialled, or talk.

    Now: from the stream's own table. At a moment: folded from the journal, as the stream had told it by then. What is
    alive is renewed within its lease, so a lease before that moment is enough to read; --whole doesn't rely on that.
    Exit statuses: 3 the journal began later, 5 a record of a newer version, 6 an unreadable one (--unreadable fail).
    """
    settings = load(KafkaSettings, PolicySettings, config=config)
    at, now = zone_of(zone), int(time.time() * 1000)
    if as_of is not None and diff is not None:
        raise typer.BadParameter("--as-of and --diff exclude each other")
    if diff is not None:
        earlier, later = sorted(moment(text, now) for text in diff)
        one = asyncio.run(past(settings, earlier, conference, whole=whole, unreadable=unreadable))
        two = asyncio.run(past(settings, later, conference, whole=whole, unreadable=unreadable))
        _show_differences(differences(one, two), earlier, later, at, json=json)
        return
    if as_of is not None:
        when = moment(as_of, now)
        _show(asyncio.run(past(settings, when, conference, whole=whole, unreadable=unreadable)), when, at, json=json)
        return
    _show(asyncio.run(present(settings[KafkaSettings], conference, unreadable)), now, at, json=json)


async def present(
    kafka: KafkaSettings, conference: str | None = None, unreadable: Unreadable = Unreadable.SKIP
) -> Table:  # fmt: skip
    """The table as the stream's changelog has it now. Raises `UnreadableError` where that is to be fatal."""
    return table_of((await read_present(kafka, unreadable)).desks.values(), conference)


async def past(
    settings: Loaded, when_ms: int, conference: str | None = None, *, whole: bool = False,
    unreadable: Unreadable = Unreadable.SKIP,
) -> Table:  # fmt: skip
    """The table as the journal had told it by a moment. Raises as `streams.audit.options.journal` does."""
    before = lookback_ms(settings)
    span = Span(None, when_ms) if whole else Span(max(0, when_ms - before), when_ms)
    fold, only = Fold(), None if conference is None else [conference]
    async with journal(
        settings[KafkaSettings], span, before_ms=0, unreadable=unreadable, what="table", conferences=only, quiet=True
    ) as found:
        async for told in found.told(None if conference is None else {conference.encode()}):
            fold.take(told)
        findings = found.findings()
        if not found.inside:
            findings.append(f"nothing was decided from {span}: nothing lived then, or no stream worker ran")
        for finding in findings:
            errors().print(f"note: {finding}")
    return table_of(fold.desks.values(), conference)


def _show(table: Table, when_ms: int, zone: tzinfo, *, json: bool) -> None:
    if json:
        typer.echo(orjson.dumps({"at_ms": when_ms, **table.as_dict()}))
        return
    console = out()
    console.print(f"As of {shown(when_ms, zone)}: {len(table.registrations)} registrations, {_states(table.callers)}")
    if table.registrations:
        names: tuple[str, ...] = ("conference", "node", "since", "SIP URI")
        for line in grid(names, ((r.conference, r.node_id, shown(r.since_ms, zone), r.sip_uri)
                                  for r in table.registrations)):  # fmt: skip
            console.print(line)
    if table.callers:
        names = ("conference", "call", "caller", "state", "for", "attempts", "node")
        for line in grid(names, (_caller(c, when_ms) for c in table.callers)):
            console.print(line)


def _caller(c: CallerLine, when_ms: int) -> tuple[str, ...]:
    waited = lasted(max(0, when_ms - c.since_ms))
    return c.conference, c.call_id, c.caller, c.state, waited, str(c.attempt), c.node_id or ""


def _states(callers: Iterable[CallerLine]) -> str:
    counts: dict[str, int] = {}
    for caller in callers:
        counts[caller.state] = counts.get(caller.state, 0) + 1
    return ", ".join(f"{count} callers {state}" for state, count in sorted(counts.items())) or "no callers"


def _show_differences(found: list[Difference], one: int, two: int, zone: tzinfo, *, json: bool) -> None:
    if json:
        typer.echo(orjson.dumps({"from_ms": one, "to_ms": two, "differences": [d.as_dict() for d in found]}))
        return
    console = out()
    console.print(f"From {shown(one, zone)} to {shown(two, zone)}: {len(found)} differences")
    for difference in found:
        console.print(f"{difference.change:>8}  {_said(difference, zone)}")


def _said(difference: Difference, zone: tzinfo) -> str:
    line = difference.after or difference.before
    changed = ", ".join(
        f"{name}: {getattr(difference.before, name)} → {getattr(difference.after, name)}" for name in difference.fields
    )
    if isinstance(line, RegistrationLine):
        what = f"registration of {line.conference} at {line.node_id}, since {shown(line.since_ms, zone)}"
    else:
        assert line is not None  # noqa: S101 - a difference has one side at least
        what = f"caller {line.caller} ({line.call_id}) for {line.conference}, {line.state}"
    return f"{what}{'; ' + changed if changed else ''}"
