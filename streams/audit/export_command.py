"""``callyard export``: call detail records, registrations or the journal as JSON Lines, CSV or Parquet."""

from __future__ import annotations

import asyncio
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import orjson
import typer

from callyard.options import ConfigOption, JsonOption
from callyard.settings import KafkaSettings, PolicySettings, load
from streams.audit.exports import CallRows, JournalRows, RegistrationRows, Row, Rows
from streams.audit.options import FromOption, ToOption, UnreadableOption, errors, journal, lookback_ms
from streams.audit.reading import Span, Unreadable, span
from streams.audit.writers import BATCH_ROWS, Format, Writer, writing

app = typer.Typer(add_completion=False, help=__doc__)


class Export(str, Enum):
    """What can be exported."""

    CALLS = "calls"
    REGISTRATIONS = "registrations"
    JOURNAL = "journal"


ROWS: dict[Export, type[CallRows | RegistrationRows | JournalRows]] = {
    Export.CALLS: CallRows,
    Export.REGISTRATIONS: RegistrationRows,
    Export.JOURNAL: JournalRows,
}


@app.command(name="export")
def command(
    what: Annotated[Export, typer.Argument(help="calls: a row for each wait of a call; the others as they say.")],
    start: FromOption = None,
    end: ToOption = None,
    out: Annotated[Path | None, typer.Option(help="The file. Default: standard output.")] = None,
    form: Annotated[
        Format | None, typer.Option("--format", help="Default: by the file's suffix, or JSON Lines.")
    ] = None,
    columns: Annotated[bool, typer.Option("--columns", help="Only say what the columns mean.")] = False,
    unreadable: UnreadableOption = Unreadable.SKIP,
    json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Export a time range of the journal (all of it without --from), for DuckDB, pandas or a spreadsheet.

    calls and registrations: what lived at any time in the range; what goes on at its end has no end yet. --json says
    on standard error how much was exported. Exit statuses: 3 nothing in the range, 5 a record of a newer version, 6 an
    unreadable one (--unreadable fail).
    """
    rows = ROWS[what]
    if columns:
        for column in rows.columns:
            typer.echo(f"{column.name:<24} {column.kind.value:<8} {column.meaning}")
        return
    settings = load(KafkaSettings, PolicySettings, config=config)
    if form is None:
        suffix = "" if out is None else out.suffix.removeprefix(".")
        form = next((known for known in Format if known.value == suffix), Format.JSONL)
    if form is Format.PARQUET and out is None:
        raise typer.BadParameter("Parquet is no stream: name a file with --out")
    wanted = span(start, end)
    with writing(rows.columns, form, out, sys.stdout.buffer) as writer:
        count, findings = asyncio.run(
            _export(
                settings[KafkaSettings],
                rows(wanted.start_ms or 0),
                writer,
                wanted,
                lookback_ms(settings),
                unreadable,
                tells=out is None,
            )
        )
    if json:
        typer.echo(orjson.dumps({"rows": count, "format": form.value, "findings": findings}), err=True)
        return
    if out is not None:
        errors().print(f"{count} rows in {out}")
    for finding in findings:
        errors().print(f"note: {finding}")


async def _export(
    kafka: KafkaSettings, rows: Rows, writer: Writer, wanted: Span, before_ms: int, unreadable: Unreadable,
    *, tells: bool,
) -> tuple[int, list[str]]:  # fmt: skip
    count, batch = 0, list[Row]()
    async with journal(
        kafka, wanted, before_ms=before_ms, unreadable=unreadable, what="exported", tells=tells
    ) as found:
        async for told in found.told():
            batch += rows.take(told)
            if len(batch) >= BATCH_ROWS:
                writer.write(batch)
                count += len(batch)
                batch.clear()
        batch += rows.rest(found.until_ms)
        writer.write(batch)
        return count + len(batch), found.findings()
