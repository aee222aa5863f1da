"""What ``callyard doctor`` finds, whatever it looks at: checks, findings, and how they are told.

A check looks and changes nothing. What it finds wrong says what to do; what it couldn't look at is a warning, never
silence. A check that itself fails in a way it doesn't know is a bug, and ends the command.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from enum import Enum
from typing import NamedTuple

import orjson
from rich.console import Console


class Level(str, Enum):
    """How bad it is: only `WRONG` makes the exit status 1."""

    FINE = "fine"
    WARNING = "warning"
    WRONG = "wrong"


class Finding(NamedTuple):
    """One thing that was found. ``advice`` says what to do; empty where nothing is to be done."""

    check: str
    level: Level
    text: str
    advice: str = ""


class Check(NamedTuple):
    """Something to look at. ``look`` returns at least one finding."""

    name: str
    look: Callable[[], Awaitable[list[Finding]]]


class Findings:
    """The findings of one check, as they are made."""

    def __init__(self, check: str) -> None:
        self._check = check
        self.all: list[Finding] = []

    def fine(self, text: str) -> None:
        """It is as it must be."""
        self.all.append(Finding(self._check, Level.FINE, text))

    def warn(self, text: str, advice: str) -> None:
        """It may be wrong, or couldn't be looked at."""
        self.all.append(Finding(self._check, Level.WARNING, text, advice))

    def wrong(self, text: str, advice: str) -> None:
        """It doesn't work as it is, or isn't safe."""
        self.all.append(Finding(self._check, Level.WRONG, text, advice))


async def examine(checks: Iterable[Check]) -> list[Finding]:
    """Look at all of it, one after the other."""
    return [finding for check in checks for finding in await check.look()]


def status(findings: Iterable[Finding]) -> int:
    """The exit status: 1 where something is wrong, else 0."""
    return int(any(finding.level is Level.WRONG for finding in findings))


_MARKS = {Level.FINE: ("ok", "green"), Level.WARNING: ("warning", "yellow"), Level.WRONG: ("WRONG", "red")}


def tell(findings: list[Finding], *, json: bool) -> int:
    """Print the findings, for people or (``json``) for machines; returns the exit status."""
    out = Console(soft_wrap=True, markup=False, highlight=False)
    if json:
        rows = [finding._asdict() for finding in findings]
        out.print(orjson.dumps({"wrong": bool(status(findings)), "findings": rows}).decode())
        return status(findings)
    for finding in findings:
        word, colour = _MARKS[finding.level]
        out.print(f"{word:>7}", style=colour, end="  ")
        out.print(f"{finding.check}: {finding.text}")
        if finding.advice:
            out.print(f"{'':>7}  -> {finding.advice}")
    return status(findings)
