"""``make bench``, ``python -m bench``: measure, print tables, write JSON."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import orjson
import typer
import uvloop
from rich.console import Console

from bench import machine, report
from bench.run import PARTS, Plan, measure
from callyard.clients import KafkaUnreachableError
from callyard.errors import CommandError
from callyard.topics import TopicsError

EXPECTED = (CommandError, KafkaUnreachableError, TopicsError)
"""What says by itself what to do."""
DEFAULT_JSON = Path("var/bench.json")


def command(
    only: Annotated[list[str] | None, typer.Option(help=f"Measure only this (may be repeated): {', '.join(PARTS)}.")]
    = None,
    callers: Annotated[int, typer.Option(min=1, max=900, help="Callers of each part but polling.")] = 200,
    quick: Annotated[bool, typer.Option("--quick", help="Few callers, all at once: shows that it works.")] = False,
    json: Annotated[Path, typer.Option(help="File that the figures are written to.")] = DEFAULT_JSON,
    strict: Annotated[bool, typer.Option("--strict", help="Exit status 1 when an aim is missed.")] = False,
) -> None:  # fmt: skip
    """Measure how long a parked caller waits once the conference opens, beside the floor and beside polling.

    Takes some four minutes on real parts (Kafka, Asterisk, SIPp), prints tables and writes JSON. See docs/bench.md.
    """
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    console = Console(soft_wrap=True, highlight=False)
    if unknown := set(only or ()) - set(PARTS):
        raise CommandError(f"--only {', '.join(sorted(unknown))}: the parts are {', '.join(PARTS)}")
    parts = frozenset(only or PARTS)
    plan = Plan.quick(parts) if quick else Plan(parts, callers=callers)
    facts = machine.facts()  # says what is missing before anything starts
    folder = Path(tempfile.mkdtemp(prefix="callyard-bench-"))
    began = time.monotonic()

    def say(text: str) -> None:
        console.print(f"{time.monotonic() - began:6.1f} s  {text}", markup=False)

    try:
        found = uvloop.run(measure(plan, folder, say))
    except (asyncio.TimeoutError, *EXPECTED) as error:
        reason = str(error) or f"it took longer than {plan.limit_seconds:g} s"
        raise CommandError(f"{reason}\nLogs are in {folder}") from None
    shutil.rmtree(folder)
    report.show(console, facts, found)
    content = report.as_json(facts, {**dataclasses.asdict(plan), "parts": sorted(plan.parts)}, found)
    json.parent.mkdir(parents=True, exist_ok=True)
    json.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n")
    console.print(f"\nWritten to {json} in {time.monotonic() - began:.0f} s", markup=False)
    if strict and not all(aim.met for aim in report.figures(found)):
        raise typer.Exit(1)


def main() -> int:
    """Run the command and return its exit status."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(name="bench")(command)
    try:
        app(prog_name="python -m bench")
    except EXPECTED as error:
        Console(stderr=True, soft_wrap=True, markup=False, highlight=False).print(f"bench: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
