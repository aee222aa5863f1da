"""``callyard audit verify`` and ``callyard audit checkpoint``: whether the journal holds what it promises."""

from __future__ import annotations

import asyncio
import gc
import logging
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
from streams.audit.progress import shown
from streams.audit.reading import Span, Unreadable, span, warner
from streams.audit.times import MOMENT_HELP
from streams.audit.verify import Report, verification
from streams.audit.verify_report import show

FromOption = Annotated[str | None, typer.Option("--from", help=f"Beginning of the period: {MOMENT_HELP}.")]
ToOption = Annotated[str | None, typer.Option("--to", help="End of the period, as --from; default: now.")]
UnreadableOption = Annotated[Unreadable, typer.Option("--unreadable", help="What an unreadable record does.")]


def quiet() -> Console:
    """The console for what isn't the result; the client's own lines, which repeat what is raised, are silenced.

    Garbage is looked for seldom: reading makes millions of short-lived objects and hardly a cycle (replay: a third
    faster).
    """
    gc.freeze()
    gc.set_threshold(50_000, 50, 50)
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    return Lines(stderr=True)


def verify(
    start: FromOption = None,
    end: ToOption = None,
    checkpoints: Annotated[
        Path | None, typer.Option("--checkpoints", help="Directory of signed checkpoints to hold the journal against.")
    ] = None,
    unreadable: UnreadableOption = Unreadable.SKIP,
    json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Verify the journal of a period: chains, invariants, checkpoints; prints counts, waits and failures.

    Exit status 0: all holds; 1: something doesn't; 3: the period is empty; 5: a newer schema version; 6: an unreadable
    record with --unreadable fail.
    """
    error = quiet()
    settings = load(KafkaSettings, StreamSettings, AuditSettings, config=config)
    report = asyncio.run(_verify(settings, span(start, end), checkpoints, unreadable, error))
    if json:
        typer.echo(orjson.dumps(report.as_dict()).decode())
    else:
        show(Lines(), report)
    if not report.good:
        raise typer.Exit(1)


async def _verify(
    settings: Loaded, period: Span, directory: Path | None, unreadable: Unreadable, error: Console
) -> Report:
    kafka, stream = settings[KafkaSettings], settings[StreamSettings]
    sealed = None
    if directory is not None:
        key = sealed_by.public_key(settings[AuditSettings])
        sealed = sealed_by.read(directory, key, topics(kafka).journal.name)
        if not sealed:
            raise CommandError(
                f"{directory} holds no checkpoint: 'callyard audit checkpoint --out {directory}' writes one"
            )
    async with verification(
        kafka,
        period,
        lookback_ms=round(2000 * stream.snapshot_seconds),
        checkpoints=sealed,
        unreadable=unreadable,
        say=warner(error),
    ) as found:
        with shown(found.reading, "verifying", error):
            return await found.run()


def checkpoint(
    out: Annotated[Path, typer.Option("--out", help="Directory of the checkpoints; best on another machine's disk.")],
    every: Annotated[
        float | None, typer.Option("--every", min=1, help="Take one every so many seconds, until ended; default: one.")
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
