"""The files of an export: what a spreadsheet, and whoever reads standard output, must not be surprised by."""

from __future__ import annotations

import csv
import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from streams.audit.exports import Column, Kind
from streams.audit.writers import Format, writing

COLUMNS = (Column("caller", Kind.TEXT, "a number"), Column("waited_ms", Kind.NUMBER, "how long"))


@pytest.mark.parametrize(
    ("caller", "written"),
    [
        ("+4930123456", "+4930123456"),
        ("+493012****", "+493012****"),
        ("hash:0a1b", "hash:0a1b"),
        ("=HYPERLINK(A1)", "'=HYPERLINK(A1)"),
        ("+49|cmd' /C calc'!A0", "'+49|cmd' /C calc'!A0"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("-2+3", "'-2+3"),
        ("\t=1", "'\t=1"),
        ('a"b\r\n,c', 'a"b\r\n,c'),
    ],
)
def test_a_callers_number_is_no_formula(caller: str, written: str) -> None:
    file = io.BytesIO()
    with writing(COLUMNS, Format.CSV, None, file) as writer:
        writer.write([{"caller": caller, "waited_ms": -5}])
    [row] = csv.DictReader(io.StringIO(file.getvalue().decode(), newline=""))
    assert row == {"caller": written, "waited_ms": "-5"}


@pytest.mark.parametrize("form", [Format.JSONL, Format.CSV])
def test_an_export_that_fails_says_nothing_and_leaves_standard_output_open(form: Format) -> None:
    file = io.BytesIO()
    with pytest.raises(KeyError), writing(COLUMNS, form, None, file):
        raise KeyError
    assert not file.closed
    assert file.getvalue() == b""


def test_an_export_of_nothing_has_its_columns() -> None:
    file = io.BytesIO()
    with writing(COLUMNS, Format.CSV, None, file) as writer:
        writer.write([])
    assert file.getvalue() == b"caller,waited_ms\r\n"


def test_what_is_no_file_is_written_into_and_never_replaced(tmp_path: Path) -> None:
    """As root, an export to /dev/null put a file into the device's place."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as reader:
        read = reader.submit(pipe.read_bytes)
        with writing(COLUMNS, Format.JSONL, pipe, io.BytesIO()) as writer:
            writer.write([{"caller": "+49", "waited_ms": 1}])
        assert read.result(10) == b'{"caller":"+49","waited_ms":1}\n'
    assert pipe.is_fifo()
    with writing(COLUMNS, Format.JSONL, Path(os.devnull), io.BytesIO()) as writer:
        writer.write([{"caller": "+49", "waited_ms": 1}])
    assert Path(os.devnull).is_char_device()


def test_a_link_stays_and_what_it_leads_to_is_replaced_as_a_whole(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_text("before")
    link.symlink_to(real)
    with pytest.raises(KeyError), writing(COLUMNS, Format.JSONL, link, io.BytesIO()) as writer:
        writer.write([{"waited_ms": 1, "caller": {}.pop("+49")}])
    assert real.read_text() == "before"
    with writing(COLUMNS, Format.JSONL, link, io.BytesIO()) as writer:
        writer.write([{"caller": "+49", "waited_ms": 1}])
    assert link.is_symlink()
    assert real.read_text() == '{"caller":"+49","waited_ms":1}\n'
    assert sorted(tmp_path.iterdir()) == [link, real]
