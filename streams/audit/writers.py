"""Rows into files: JSON Lines, CSV or Parquet, a few thousand rows at a time. Parquet needs pyarrow (``[audit]``)."""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timezone
from enum import Enum
from pathlib import Path
from typing import IO, Any, Protocol

import orjson

from callyard.errors import CommandError
from streams.audit.exports import Column, Kind, Row
from streams.audit.times import shown

BATCH_ROWS = 5_000


class Format(str, Enum):
    """The formats of an export."""

    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"


class Writer(Protocol):
    """Writes rows."""

    def write(self, rows: Sequence[Row]) -> None:
        """Write rows, in their order."""
        ...

    def close(self) -> None:
        """Finish; the file itself is closed by whoever opened it."""
        ...


class JsonLines:
    """One JSON object a line; times as RFC 3339, UTC."""

    def __init__(self, columns: Sequence[Column], file: IO[bytes]) -> None:
        self._times = _times(columns)
        self._file = file

    def write(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._file.write(orjson.dumps(_with_times(row, self._times), option=orjson.OPT_APPEND_NEWLINE))

    def close(self) -> None:
        self._file.flush()


class Csv:
    """RFC 4180 with a header line; times as RFC 3339, UTC; null is empty.

    A spreadsheet runs a text that begins like a formula, and a caller's number can be one: it gets an apostrophe.
    """

    def __init__(self, columns: Sequence[Column], file: IO[bytes]) -> None:
        self._times = _times(columns)
        self._texts = tuple(column.name for column in columns if column.kind is Kind.TEXT)
        self._file = file
        # No TextIOWrapper: where an export fails, that one closes standard output as it goes.
        self._csv = csv.DictWriter(
            codecs.getwriter("utf-8")(file), [column.name for column in columns], lineterminator="\r\n"
        )
        self._begun = False

    def write(self, rows: Sequence[Row]) -> None:
        self._begin()
        self._csv.writerows(_with_times(self._harmless(row), self._times) for row in rows)

    def close(self) -> None:
        self._begin()
        self._file.flush()

    def _begin(self) -> None:
        # Not before there is something to write: an export that fails says nothing on standard output.
        if not self._begun:
            self._begun = True
            self._csv.writeheader()

    def _harmless(self, row: Row) -> Row:
        formulas = {name: f"'{row[name]}" for name in self._texts if row[name] and _FORMULA.match(row[name])}
        return row | formulas if formulas else row


_FORMULA = re.compile(r"[=+@\t\r\n-](?![0-9*#]*\Z)")
"""What a spreadsheet takes for a formula; a number in international form, masked or not, is none."""


class Parquet:
    """Parquet with one row group a batch; times as timestamps (milliseconds, UTC)."""

    def __init__(self, columns: Sequence[Column], file: IO[bytes]) -> None:
        try:
            import pyarrow as pa  # noqa: PLC0415 - an extra's, and of this format only
            import pyarrow.parquet as pq  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise CommandError(f"Parquet needs {error.name}: pip install 'callyard[audit]'") from None
        kinds = {Kind.TEXT: pa.string(), Kind.NUMBER: pa.int64(), Kind.TRUTH: pa.bool_(),
                 Kind.TIME: pa.timestamp("ms", tz="UTC")}  # fmt: skip
        fields = [pa.field(column.name, kinds[column.kind], metadata={"meaning": column.meaning}) for column in columns]
        self._schema = pa.schema(fields)
        self._batch = pa.RecordBatch.from_pylist
        self._writer = pq.ParquetWriter(file, self._schema, compression="zstd")

    def write(self, rows: Sequence[Row]) -> None:
        self._writer.write_batch(self._batch(list(rows), schema=self._schema))

    def close(self) -> None:
        self._writer.close()


_WRITERS: dict[Format, Any] = {Format.JSONL: JsonLines, Format.CSV: Csv, Format.PARQUET: Parquet}


@contextmanager
def writing(columns: Sequence[Column], form: Format, target: Path | None, standard: IO[bytes]) -> Iterator[Writer]:
    """A writer to a file (None: to ``standard``), which has its name only once all of it is written.

    What is there and is no file, such as a pipe or ``/dev/null``, is written into as it is, and never replaced.
    """
    if target is None:
        made: Writer = _WRITERS[form](columns, standard)
        yield made
        made.close()
        return
    try:
        with _opened(target) as file:
            made = _WRITERS[form](columns, file)
            yield made
            made.close()
    except OSError as error:
        raise CommandError(f"--out {target}: {error.strerror or error}") from None


@contextmanager
def _opened(target: Path) -> Iterator[IO[bytes]]:
    target = target.resolve()  # what a link leads to is written, and the link stays
    if target.exists() and not target.is_file():
        with target.open("wb") as file:
            yield file
        return
    part = target.with_name(f"{target.name}.part")
    try:
        with part.open("wb") as file:
            yield file
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _times(columns: Sequence[Column]) -> tuple[str, ...]:
    return tuple(column.name for column in columns if column.kind is Kind.TIME)


def _with_times(row: Row, times: Sequence[str]) -> Row:
    return row | {name: shown(row[name], timezone.utc) for name in times if row[name] is not None}
