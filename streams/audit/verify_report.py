"""A verification's report for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from streams.audit.times import lasted, shown
from streams.audit.verify import Report


def show(console: Console, report: Report) -> None:
    """Print a report: figures, what the checkpoints say, findings."""
    found = report.invariants
    console.print(f"{report.records:,} records of the journal, {report.span}")
    lines: list[tuple[str, str]] = [
        ("inputs decided", f"{sum(found.inputs.values()):,}: {_counts(found.inputs)}"),
        ("stays begun", f"{found.stays:,}"),
        ("stays ended", f"{sum(found.ended.values()):,}: {_counts(found.ended)}"),
        ("open at the end", _counts(report.left)),
        ("dial instructions", f"{found.dials:,}"),
        ("told to callers", _counts(found.notices)),
        ("what came of them", _counts(found.outcomes)),
        ("failures by reason", _counts(found.failures)),
        ("waited, in all", _spread(found.waited.spread())),
        ("beside a conference", _spread(found.waited_beside.spread())),
    ]
    for name, value in lines:
        console.print(f"  {name:<20} {value}")
    if report.repeated or report.unreadable:
        console.print(f"  said again by a new owner: {report.repeated:,}; unreadable: {report.unreadable:,}")
    console.print(_sealed(report.sealed))
    for finding in report.findings.kept:
        console.print(f"  {finding.kind}: {finding.where}: {finding.text}")
    more = report.findings.total - len(report.findings.kept)
    if more:
        console.print(f"  … and {more:,} more")
    console.print(
        "All invariants hold."
        if report.good
        else f"{report.findings.total:,} findings: {_counts(report.findings.counts)}"
    )


def _sealed(sealed: Mapping[str, Any] | None) -> str:
    if sealed is None:
        return "No checkpoints were given: that nothing was removed or replaced is not shown."
    if sealed["first"] is None:
        return "No checkpoint is of this period: that nothing was removed or replaced is not shown."
    expired = f"; {sealed['expired']} ranges are older than retention" if sealed["expired"] else ""
    if sealed["altered"]:
        return f"NOT as it was sealed: {sealed['altered']} of {sealed['ranges']} ranges are altered{expired}"
    first = f"checkpoint {sealed['first']} ({shown(sealed['first_ms'])})"
    last = f"checkpoint {sealed['last']} ({shown(sealed['last_ms'])})"
    unsealed = f"; {sealed['unsealed']:,} others are in no checkpoint" if sealed["unsealed"] else ""
    return f"Complete and unaltered from {first} to {last}: {sealed['records']:,} records{expired}{unsealed}"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items())) or "none"


def _spread(spread: Mapping[str, int]) -> str:
    if not spread["count"]:
        return "nobody"
    parts = ", ".join(f"{name} {lasted(spread[name])}" for name in ("p50", "p95", "p99", "max"))
    return f"{spread['count']:,} callers: {parts}"
