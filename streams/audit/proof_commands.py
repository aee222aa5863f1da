"""``callyard audit verify`` and ``callyard audit checkpoint``: whether the journal holds what it promises."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console

from callyard.errors import CommandError
from callyard.options import ConfigOption, JsonOption
from callyard.settings import AuditSettings, KafkaSettings, Loaded, StreamSettings, load
from callyard.topics import topics
from streams.audit import checkpoints as sealed_by
from streams.audit import seal_journal
from streams.audit.lines import Lines
from streams.audit.progress import bar, quiet, shown
from streams.audit.reading import Span, Unreadable, span, warner
from streams.audit.shares import Order, divided, in_shares, processes_for, sizes, verify_share
from streams.audit.times import MOMENT_HELP
from streams.audit.verify import Report, verification
from streams.audit.verify_report import show

FromOption = Annotated[str | None, typer.Option("--from", help=f"Beginning of the period: {MOMENT_HELP}.")]
ToOption = Annotated[str | None, typer.Option("--to", help="End of the period, as --from; default: now.")]
UnreadableOption = Annotated[Unreadable, typer.Option("--unreadable", help="What an unreadable record does.")]
WORTH = 200_000
"""Records of the journal from which on a second process is worth its start."""


def verify(
    start: FromOption = None,
    end: ToOption = None,
    checkpoints: Annotated[
        Path | None, typer.Option("--checkpoints", help="Directory of signed checkpoints to hold the journal against.")
    ] = None,
    unreadable: UnreadableOption = Unreadable.SKIP,
    processes: Annotated[
        int | None,
        typer.Option(
            "--processes", min=1, help="Read in so many processes; default: one for each core; with --checkpoints: one."
        ),
    ] = None,
    json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Verify the journal of a period: chains, invariants, checkpoints; prints counts, waits and failures.

    Exit status 0: all holds; 1: something doesn't; 3: the period is empty; 5: a newer schema version; 6: an unreadable
    record with --unreadable fail.
    """
    error = quiet()
    settings = load(KafkaSettings, StreamSettings, AuditSettings, config=config)
    period = span(start, end)
    if checkpoints is None:
        report = _verify_shares(settings, period, unreadable, processes, error)
    elif processes in {None, 1}:
        report = asyncio.run(_verify(settings, period, checkpoints, unreadable, error))
    else:
        raise typer.BadParameter("with --checkpoints one process reads the journal", param_hint="--processes")
    if json:
        typer.echo(orjson.dumps(report.as_dict()).decode())
    else:
        show(Lines(), report)
    if not report.good:
        raise typer.Exit(1)


def _verify_shares(
    settings: Loaded, period: Span, unreadable: Unreadable, processes: int | None, error: Console
) -> Report:
    order = Order(settings[KafkaSettings], period, settings[StreamSettings].lookback_ms, unreadable)
    found = asyncio.run(sizes(order.settings, order.span))
    shares = divided(found, processes or processes_for(sum(found.values()), WORTH))
    with bar("verifying", sum(found.values()), error) as progress:
        return in_shares(verify_share, order, shares, progress)


async def _verify(settings: Loaded, period: Span, directory: Path, unreadable: Unreadable, error: Console) -> Report:
    kafka, stream = settings[KafkaSettings], settings[StreamSettings]
    key = sealed_by.public_key(settings[AuditSettings])
    sealed = sealed_by.read(directory, key, topics(kafka).journal.name)
    if not sealed:
        raise CommandError(f"{directory} holds no checkpoint: 'callyard audit checkpoint --out {directory}' writes one")
    async with verification(
        kafka,
        period,
        lookback_ms=stream.lookback_ms,
        checkpoints=sealed,
        unreadable=unreadable,
        say=warner(error),
    ) as found:
        with shown(found.reading, "verifying", error):
            return await found.run()


def checkpoint(
    out: Annotated[Path, typer.Option("--out", help="Directory of the checkpoints; best on another machine's disk.")],
    every: Annotated[
        float | None,
        typer.Option("--every", min=1, max=1e8, help="Take one every so many seconds, until ended; default: one."),
    ] = None,
    json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Seal what the journal grew by since the last checkpoint, sign it, and write it to a directory outside Kafka.

    The key: CALLYARD_AUDIT_SIGNING_KEY_FILE. Exit status 1 where the journal doesn't go on where the last one ended.
    """
    error = quiet()
    settings = load(KafkaSettings, AuditSettings, config=config)
    while True:
        began = time.monotonic()
        path, made = asyncio.run(seal_journal.take(settings[KafkaSettings], settings[AuditSettings], out))
        count = sum(one.count for one in made.ranges.values())
        if json:
            typer.echo(orjson.dumps({"file": str(path), "number": made.number, "records": count}).decode())
        else:
            error.print(f"{path}: {count:,} records in {len(made.ranges)} partitions")
        if not every:
            return
        time.sleep(max(0.0, every - (time.monotonic() - began)))
