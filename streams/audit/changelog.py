"""The table's changelog as audits read it: one record, one row; whatever no stream wrote is unreadable. Pure."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import orjson

from callyard.records import RecordError
from streams.audit.reading import StoredRecord
from streams.audit.shapes import require_applied, require_row
from streams.claims import Claims, claim_of
from streams.rows import Row, decode, split_key

POSITION = "@"
CLAIM = "!"


@dataclass(frozen=True, slots=True)
class Kept:
    """What a record of the changelog says."""

    partition: int
    conference: str
    kind: str
    """``d``, ``r``, ``s``, `POSITION`, or `CLAIM`."""
    rest: str
    """The key of the row among its desk's."""
    row: Row | None
    """None: it is forgotten; or it is a partition's position."""
    applied: dict[str, int]
    """Of a position: the newest offset that was decided, by topic."""


class Changelog:
    """Reads the records of all partitions, each partition's in its order."""

    def __init__(self) -> None:
        self._claims: defaultdict[int, Claims] = defaultdict(Claims)

    def read(self, record: StoredRecord) -> Kept | None:
        """What a record says; None where it counts for nothing, because its writer no longer owned the partition.

        Raises `RecordError` where no stream can have written it.
        """
        kept = _read(record)
        try:
            claim = claim_of(record.headers)
        except ValueError as error:
            raise RecordError(str(error)) from None
        return kept if self._claims[record.partition].admit(claim) else None


def _read(record: StoredRecord) -> Kept:
    try:
        partition, conference, kind, rest = split_key(record.key or b"")
    except (ValueError, IndexError):
        raise RecordError(f"its key is that of no row: {record.key!r:.60}") from None
    if kind not in {POSITION, CLAIM, "d", "r", "s"}:
        raise RecordError(f"row kind {kind!r:.20} is none")
    if record.value is None:
        return Kept(partition, conference, kind, rest, None, {})
    try:
        content: Any = orjson.loads(record.value)
    except orjson.JSONDecodeError as error:
        raise RecordError(f"not JSON: {error}; begins with {record.value[:60]!r}") from None
    if kind == POSITION:
        require_applied(content)
        return Kept(partition, conference, kind, rest, None, content["applied"])
    require_row(kind, content)
    return Kept(partition, conference, kind, rest, decode(kind, record.value), {})
