"""``callyard audit``: what happened to a call, and the same from the side of a conference, a node or a gateway."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

import orjson
import typer

from callyard import numbers
from callyard.options import ConfigOption, JsonOption
from callyard.settings import KafkaSettings, PolicySettings, PrivacySettings, load
from callyard.topics import DAY_MS
from streams.audit import find, forget_command, render, sides
from streams.audit.options import FromOption, ToOption, UnreadableOption, ZoneOption, errors, lookback_ms, out
from streams.audit.reading import Span, Unreadable, span
from streams.audit.times import zone_of

app = typer.Typer(add_completion=False, help=__doc__, no_args_is_help=True)
app.add_typer(forget_command.app)
DEFAULT_FROM = "-24h"
FullOption = Annotated[bool, typer.Option("--full", help="Tell every call in full, with renewals and what came late.")]


@app.command()
def call(
    call_id: Annotated[str | None, typer.Argument(help="A call id: gw-1/1764000000.12.")] = None,
    caller: Annotated[
        str | None, typer.Option(help="Calls of this number: full (found in each form), masked or a hash.")
    ] = None,
    conference: Annotated[str | None, typer.Option(help="Calls for this conference number.")] = None,
    start: FromOption = None,
    end: ToOption = None,
    most: Annotated[int, typer.Option(min=1, help="Tell so many calls in full; of more, list them.")] = 3,
    full: FullOption = False,
    zone: ZoneOption = "UTC",
    unreadable: UnreadableOption = Unreadable.SKIP,
    json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Tell the story of a call: parked, what was known then, each decision and why, each outcome, and the waits.

    Without --from: the last 24 hours, or a day from when the call began, as its id tells. Exit statuses: 3 nothing in
    the range, 4 no such call, 5 a record of a newer version, 6 an unreadable record with --unreadable fail.
    """
    if not (call_id or caller or conference):
        raise typer.BadParameter("name a call id, --caller or --conference")
    settings = load(KafkaSettings, PolicySettings, PrivacySettings, config=config)
    at = zone_of(zone)
    callers = numbers.forms(caller, settings[PrivacySettings].key) if caller else frozenset[str]()
    wanted = find.Wanted(call_id, callers, conference)
    before = lookback_ms(settings)
    found = asyncio.run(
        find.find(
            settings[KafkaSettings], wanted, _span(start, end, call_id), before_ms=before, unreadable=unreadable
        )
    )  # fmt: skip
    if json:
        calls = [story.as_dict(found.until_ms) for story in found.stories]
        typer.echo(orjson.dumps({"calls": calls, "findings": found.findings, "until_ms": found.until_ms}))
        return
    console = out()
    if len(found.stories) > most and not full:
        for story in found.stories:
            console.print(render.summary(story, found.until_ms, at))
        console.print("")
        console.print(f"{len(found.stories)} calls; 'callyard audit call CALL_ID' tells one in full, --full all")
    else:
        for story in found.stories:
            for line in render.whole(story, found.until_ms, at, everything=full):
                console.print(line)
            console.print("")
    _say_findings(found.findings)


def _span(start: str | None, end: str | None, call_id: str | None) -> Span:
    if start is None and call_id is not None and (began := find.start_of(call_id)) is not None:
        made, over = span(None, end), began + find.CLOCK_SLACK_MS + DAY_MS
        # No call lasts for longer; of one that does it is said that it was alive at the range's end.
        day_end = over if over < time.time() * 1000 else None
        return Span(max(0, began - find.CLOCK_SLACK_MS), day_end if end is None else made.end_ms)
    return span(start or DEFAULT_FROM, end)


def _say_findings(findings: list[str]) -> None:
    for finding in findings:
        errors().print(f"note: {finding}")


NumberArgument = Annotated[str, typer.Argument(help="A conference number.")]
NameArgument = Annotated[str, typer.Argument(help="Its id.")]


@app.command()
def conference(
    number: NumberArgument, start: FromOption = DEFAULT_FROM, end: ToOption = None, full: FullOption = False,
    zone: ZoneOption = "UTC", unreadable: UnreadableOption = Unreadable.SKIP, json: JsonOption = False,
    config: ConfigOption = None,
) -> None:  # fmt: skip
    """Tell what happened at a conference number: its registrations, its callers and what was decided about them."""
    _side(sides.Side("conference", number), start, end, full, zone, unreadable, json, config)


@app.command()
def node(
    name: NameArgument, start: FromOption = DEFAULT_FROM, end: ToOption = None, full: FullOption = False,
    zone: ZoneOption = "UTC", unreadable: UnreadableOption = Unreadable.SKIP, json: JsonOption = False,
    config: ConfigOption = None,
) -> None:  # fmt: skip
    """Tell what happened at a node: which conferences it registered, who was sent there and how that went."""
    _side(sides.Side("node", name), start, end, full, zone, unreadable, json, config)


@app.command()
def gateway(
    name: NameArgument, start: FromOption = DEFAULT_FROM, end: ToOption = None, full: FullOption = False,
    zone: ZoneOption = "UTC", unreadable: UnreadableOption = Unreadable.SKIP, json: JsonOption = False,
    config: ConfigOption = None,
) -> None:  # fmt: skip
    """Tell what happened at a gateway: its calls, what it was told to do and how that went."""
    _side(sides.Side("gateway", name), start, end, full, zone, unreadable, json, config)


def _side(
    side: sides.Side, start: str | None, end: str | None, full: bool, zone: str, unreadable: Unreadable, json: bool,
    config: Any,
) -> None:  # fmt: skip
    settings = load(KafkaSettings, PolicySettings, config=config)
    at = zone_of(zone)
    view = sides.View(json=json, full=full, zone=at)
    findings = asyncio.run(
        sides.tell(
            settings[KafkaSettings], side, span(start, end), view, before_ms=lookback_ms(settings),
            unreadable=unreadable,
        )
    )  # fmt: skip
    if not json:
        _say_findings(findings)
