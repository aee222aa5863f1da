"""What was found, for people and for programs."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.chaos.run import Result
from tests.chaos.schedule import Kind

SHOWN = 20
"""Findings of each sort that are printed; all of them are in the JSON file."""


def as_json(result: Result) -> dict[str, Any]:
    """What is written to the JSON file; seconds unless a name says otherwise."""
    verdict = result.verdict
    return {
        "schema": 1,
        "seed": result.run.seed,
        "good": verdict.good,
        "seconds": round(result.seconds, 1),
        "mean_seconds": result.run.mean_seconds,
        "nodes": result.run.nodes,
        **_counts(result),
        "faults_by_kind": _by_kind(result),
        "faults_without_a_connection": _idle(result),
        "ended_by_themselves": dict(result.ended_alone),
        "stays": dict(verdict.stays),
        "waits": dataclasses.asdict(verdict.waits),
        "findings": {
            "lost": verdict.lost,
            "doubled": verdict.doubled,
            "wrong": verdict.wrong,
            "journal": verdict.journal,
            "late": verdict.late,
            "misheard": verdict.misheard,
        },
    }


def show(console: Console, result: Result) -> None:
    """Print one table, and the findings."""
    verdict = result.verdict
    table = Table("", "", title=f"\nChaos, seed {result.run.seed}, {result.seconds:.0f} s")
    table.columns[1].justify = "right"
    for name, value in _counts(result).items():
        table.add_row(name.replace("_", " "), str(value))
    table.add_section()
    for kind, count in _by_kind(result).items():
        table.add_row(f"fault {kind}", str(count))
    table.add_section()
    for name, ended in result.ended_alone.items():
        table.add_row(f"{name} ended by itself", str(ended))
    table.add_section()
    waits = verdict.waits
    for label, seconds in (("p50", waits.p50), ("p95", waits.p95), ("p99", waits.p99), ("longest", waits.longest)):
        table.add_row(f"extra wait, {label}", f"{seconds:.2f} s")
    table.add_row("median wait", f"{waits.median:.2f} s")
    table.add_row("gave up beside a running conference", str(waits.gave_up))
    table.add_row("the longest of them after", f"{waits.longest_given_up:.2f} s")
    console.print(table)
    for name in ("lost", "doubled", "wrong", "journal", "misheard"):
        found: list[str] = getattr(verdict, name)
        for text in found[:SHOWN]:
            console.print(f"{name}: {text}", markup=False)
        if len(found) > SHOWN:
            console.print(f"{name}: and {len(found) - SHOWN} more")


def _counts(result: Result) -> dict[str, int]:
    verdict, facts = result.verdict, result.facts
    return {
        "callers": len(facts.callers),
        "conferences": len({opening.conference for opening in facts.openings}),
        "openings": len(facts.openings),
        "legs": len(facts.legs),
        "decisions": len(facts.journal),
        "faults": len(result.injected),
        "lost": len(verdict.lost),
        "doubled": len(verdict.doubled),
        "wrong": len(verdict.wrong),
        "journal_findings": len(verdict.journal),
        "late": len(verdict.late),
        "misheard": len(verdict.misheard),
        "restarts_by_themselves": sum(result.ended_alone.values()),
    }


def _by_kind(result: Result) -> dict[str, int]:
    count = Counter(injected.fault.kind for injected in result.injected)
    return {kind.value: count[kind] for kind in Kind if count[kind]}


def _idle(result: Result) -> int:
    on_connections = ("cut", "stall", "delay", "split", "hold")
    return sum(
        not injected.connections for injected in result.injected if injected.fault.kind.value.startswith(on_connections)
    )
