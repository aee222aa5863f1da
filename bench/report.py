"""What was found, for people and for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.figures import Aim, Spread, aims

TITLES = {
    "openings": "Callyard: a conference for each caller, ten openings a second",
    "herd": "Callyard: all callers in one conference (since its opening)",
    "floor": "The floor: two raw hops of Kafka, then a bare redirect",
    "at-once": "The herd's floor: bare redirects, all at once",
    "polling": "Polling: ChanIsAvail, Playback, Wait(8), again",
    "stream": "One stream worker on a backlog",
    "audit": "The audit of that worker's journal",
    "hook": "The hook, one core",
}


def figures(found: Mapping[str, Mapping[str, Any]]) -> list[Aim]:
    """The aims, as far as they were measured."""
    spread = {name: part["total"] for name, part in found.items() if "total" in part}
    made = aims(spread.get("openings"), spread.get("floor"), spread.get("polling"))
    shares = [(name, found["audit"][f"{name} / bare"]) for name in ("verify", "replay") if "audit" in found]
    return made + [Aim(f"{name} / a bare consumer", share, 0.5, at_least=True) for name, share in shares]


def as_json(facts: Mapping[str, Any], plan: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]]) -> Any:
    """What is written to the JSON file. All durations are milliseconds, unless their name says otherwise."""
    return {
        "schema": 1,
        "machine": dict(facts),
        "plan": dict(plan),
        "parts": _plain(found),
        "aims": [aim.as_dict() for aim in figures(found)],
    }


def show(console: Console, facts: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]]) -> None:
    """Print tables: spreads in milliseconds, rates, aims."""
    load = "/".join(f"{value:g}" for value in facts["load average"])
    console.print(
        f"\n{facts['at']}  {facts['cores']} cores ({facts['cpu']}), load average before the run {load}\n"
        f"Kafka {facts['kafka']}, Asterisk {facts['asterisk']}, Python {facts['python']}, Callyard {facts['callyard']}"
    )
    spreads = Table("milliseconds", "n", "p50", "p95", "p99", "max", title="\nFrom the opening to the dial")
    for column in spreads.columns[1:]:
        column.justify = "right"
    rates = Table("rate", "", title="\nThroughput")
    rates.columns[1].justify = "right"
    for name, part in found.items():
        if "total" in part:
            _rows(spreads, name, part)
        for key, value in part.items():
            if isinstance(value, (int, float)):
                rates.add_row(f"{TITLES[name].partition(':')[0]}: {key}", f"{value:,}")
    for name, part in found.items():
        if busy := part.get("busy"):
            shares = ", ".join(f"{process} {share}" for process, share in busy["percent of a core"].items())
            console.print(
                f"Busy in {name}, percent of a core: {shares}; all cores {busy['all cores']};"
                f" somebody waited for a core {busy['waited']} % of the time"
            )
    for table in (spreads, rates):
        if table.row_count:
            console.print(table)
    if reached := figures(found):
        table = Table("figure", "measured", "aim", "", title="\nAims")
        for aim in reached:
            sign = "at least" if aim.at_least else "at most"
            table.add_row(aim.name, f"{aim.value:g}", f"{sign} {aim.bound:g}", "met" if aim.met else "[bold]missed[/]")
        console.print(table)


def _rows(table: Table, name: str, part: Mapping[str, Any]) -> None:
    table.add_row(f"[bold]{TITLES[name]}", *_cells(part["total"]))
    # Of a herd the stages of one caller say little: who is the last waits for the others.
    for stage, spread in part.get("since opening" if name == "herd" else "stages", {}).items():
        table.add_row(f"    {stage}", *_cells(spread))
    table.add_section()


def _cells(spread: Spread) -> list[str]:
    return [str(spread.count), *(f"{value:,.1f}" for value in (spread.p50, spread.p95, spread.p99, spread.max))]


def _plain(value: Any) -> Any:
    if isinstance(value, Spread):
        return dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {key: _plain(content) for key, content in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value
