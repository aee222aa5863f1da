"""``make chaos``, ``python -m tests.chaos``: run, print a table, write JSON."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console

from callyard.clients import KafkaUnreachableError
from callyard.errors import CommandError
from callyard.topics import TopicsError
from tests.chaos import gather, report
from tests.chaos.run import Run, execute
from tests.chaos.schedule import Kind

EXPECTED = (CommandError, KafkaUnreachableError, TopicsError)
DEFAULT_OUT = Path("var/chaos.json")
SHORT_CALLERS, SHORT_MEAN_SECONDS = 60, 1.6


def command(
    seed: Annotated[int, typer.Option(help="Determines what fails when and what callers do.")] = 1,
    each: Annotated[int, typer.Option(min=1, help="Faults of each kind.")] = 30,
    only: Annotated[list[Kind] | None, typer.Option(help="Only faults of this kind (may be repeated).")] = None,
    mean: Annotated[float, typer.Option(min=0.1, help="Mean seconds between two faults.")] = 2.0,
    callers: Annotated[int, typer.Option(min=1, max=5000, help="How many callers come.")] = 600,
    nodes: Annotated[int, typer.Option(min=1, max=5, help="BigBlueButton nodes.")] = 3,
    short: Annotated[bool, typer.Option("--short", help="Each kind once, few callers, two nodes: a minute.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the folder of a good run, too.")] = False,
    out: Annotated[Path, typer.Option(help="File that the figures are written to.")] = DEFAULT_OUT,
) -> None:  # fmt: skip
    """Kill, freeze and cut everything while callers come and go; then compare what was seen with the journal.

    A full run takes some 15 minutes on real parts (Kafka, Asterisk, SIPp). Exit status 1 when a caller was lost,
    dialled twice at once or led wrong, or when the journal contradicts itself or the table. See docs/chaos.md.
    """
    # A broker that is killed every half minute hardly profits from optimized code, but pays for it at each start.
    os.environ.setdefault("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1")
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    console = Console(soft_wrap=True, highlight=False)
    chosen = frozenset(only or ())
    if short:
        run = Run.of(seed, 1, chosen, mean_seconds=SHORT_MEAN_SECONDS, callers=SHORT_CALLERS, nodes=2)
    else:
        run = Run.of(seed, each, chosen, mean_seconds=mean, callers=callers, nodes=nodes)
    folder = Path(tempfile.mkdtemp(prefix=f"callyard-chaos-{seed}-"))
    began = time.monotonic()

    def say(text: str) -> None:
        console.print(f"{time.monotonic() - began:6.1f} s  {text}", markup=False)

    try:
        result = asyncio.run(execute(run, folder, say))
    except EXPECTED as error:
        raise CommandError(f"seed {seed}: {error}\nLogs are in {folder}") from None
    report.show(console, result)
    content = orjson.dumps(report.as_json(result), option=orjson.OPT_INDENT_2) + b"\n"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(content)
    console.print(f"\nWritten to {out}", markup=False)
    if result.verdict.good and not keep:
        shutil.rmtree(folder)
        return
    (folder / "report.json").write_bytes(content)
    gather.dump(folder, result.facts)
    (folder / "injected.jsonl").write_bytes(b"".join(orjson.dumps(one) + b"\n" for one in result.injected))
    console.print(f"Logs, events, journal and schedule are in {folder}", markup=False)
    if not result.verdict.good:
        raise typer.Exit(1)


def main() -> int:
    """Run the command and return its exit status."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(name="chaos")(command)
    try:
        app(prog_name="python -m tests.chaos")
    except EXPECTED as error:
        Console(stderr=True, soft_wrap=True, markup=False, highlight=False).print(f"chaos: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
