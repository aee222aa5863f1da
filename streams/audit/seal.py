"""What a checkpoint says of a range of one journal partition, and whether the journal still is as it said. Pure.

A range is sealed by the hash of all its records (offset, timestamp, key, value, in order), their count, and the root
over the heads of the chains in it: the SHA-256 of each conference's last record. The first finds whatever was removed,
changed, swapped or appended; the others tell which it was, and don't depend on offsets.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Any

_HEAD = struct.Struct(">qqii")


@dataclass(frozen=True, slots=True)
class Range:
    """What was sealed: offsets from ``begin`` up to and without ``end``."""

    partition: int
    begin: int
    end: int
    count: int
    """Records in it."""
    log: str
    """SHA-256 over its records."""
    heads: str
    """SHA-256 over the conferences in it, in order, each with the SHA-256 of its last record."""
    conferences: int
    first_ms: int
    """The timestamp of its first record (0: it holds none)."""
    last_ms: int
    """The newest timestamp in it (0: it holds no record)."""

    @classmethod
    def of(cls, content: dict[str, Any]) -> Range:
        """The range from its JSON. Raises `KeyError` or `TypeError` where that is something else."""
        return cls(**{name: content[name] for name in cls.__slots__})


class Seal:
    """A range being sealed: take all its records in order."""

    def __init__(self, partition: int, begin: int) -> None:
        self._partition = partition
        self._begin = begin
        self._count = 0
        self._first_ms = self._last_ms = 0
        self._log = hashlib.sha256()
        self._heads: dict[bytes, bytes] = {}

    def take(self, offset: int, timestamp: int, key: bytes | None, value: bytes | None) -> None:
        """Take the next record."""
        sizes = -1 if key is None else len(key), -1 if value is None else len(value)
        self._log.update(_HEAD.pack(offset, timestamp, *sizes) + (key or b"") + (value or b""))
        if not self._count:
            self._first_ms = timestamp
        self._count += 1
        self._last_ms = max(self._last_ms, timestamp)
        if key is not None:
            self._heads[key] = hashlib.sha256(value or b"").digest()

    def close(self, end: int) -> Range:
        """The range, which ends before this offset."""
        root = hashlib.sha256()
        for key, head in sorted(self._heads.items()):
            root.update(struct.pack(">i", len(key)) + key + head)
        return Range(
            self._partition, self._begin, end, self._count, self._log.hexdigest(), root.hexdigest(),
            len(self._heads), self._first_ms, self._last_ms,
        )  # fmt: skip


def difference(sealed: Range, found: Range) -> str | None:
    """How the range that was found differs from what was sealed, for people; None where it doesn't."""
    if found.log == sealed.log and found.count == sealed.count:
        return None
    offsets = f"offsets {sealed.begin} to {sealed.end - 1}"
    if found.count < sealed.count:
        what = f"{sealed.count - found.count} of {sealed.count} records are missing in {offsets}"
    elif found.count > sealed.count:
        what = f"{offsets} hold {found.count - sealed.count} records more than the {sealed.count} that were sealed"
    else:
        what = f"of the {sealed.count} records in {offsets} some were changed, swapped or replaced"
    if found.conferences < sealed.conferences:
        return f"{what}; {sealed.conferences - found.conferences} conferences are gone altogether"
    return what
