"""One guard for every consumer of this package: a record whose header *name* isn't UTF-8 must not end its reader.

Kafka keeps header names as bytes and brokers don't check them, but aiokafka decodes them strictly while it unpacks a
batch: the consumer raises `UnicodeDecodeError`, stays where it is, and raises it again for ever. Nothing here reads
foreign headers, so one such record, from whoever may write to an input, would end every worker that reads it.

The guard costs nothing as long as names are sound: only the batch that raised is read again, from its bytes, in
Python, with each byte of a name that isn't UTF-8 replaced by ``?``. Keys, values and offsets are as they came.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from aiokafka.consumer import fetcher
from aiokafka.record import default_records, memory_records
from aiokafka.record.util import decode_varint

from callyard.guards import GuardError, patched

PINNED = "0.14.0"
"""The version of aiokafka whose insides the guard was made for."""


_Records: Any = patched(memory_records, "MemoryRecords")
_Batch: Any = patched(default_records, "_DefaultRecordBatchPy")
_Batches: Any = patched(memory_records, "_MemoryRecordsPy")
_PartitionRecords: Any = patched(fetcher, "PartitionRecords")
_read_message: Callable[[Any], Any] = patched(_Batch, "_read_msg")


class KeptRecords(_Records):  # type: ignore[misc]  # aiokafka's compiled reader has no types
    """aiokafka's records of one fetch that keep the bytes they were made from."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.data = data


class TolerantBatch(_Batch):  # type: ignore[misc]  # as above
    """A batch whose header names may be any bytes."""

    def _read_msg(self) -> Any:
        try:
            return _read_message(self)
        except UnicodeDecodeError:
            self._mend_names()
            return _read_message(self)

    def _mend_names(self) -> None:
        # Each name keeps its length, so that the record stays whole. Where it isn't, the second reading says so.
        buffer, pos = self._buffer, self._pos
        for _ in ("length", "attributes", "timestamp", "offset"):
            _, pos = decode_varint(buffer, pos)
        for _ in ("key", "value"):
            pos = _skip(buffer, pos)
        count, pos = decode_varint(buffer, pos)
        for _ in range(count):
            length, start = decode_varint(buffer, pos)
            name = buffer[start : start + length]
            try:
                name.decode()
            except UnicodeDecodeError:
                buffer[start : start + length] = bytes(byte if byte < 0x80 else ord("?") for byte in name)
            pos = _skip(buffer, start + length)


class TolerantRecords(_Batches):  # type: ignore[misc]  # as above
    """aiokafka's reader in Python, with tolerant batches; those of old formats have no headers."""

    def next_batch(self) -> Any:
        piece = self._next_slice
        batch = super().next_batch()
        return TolerantBatch(piece) if isinstance(batch, default_records.DefaultRecordBatch) else batch


class TolerantPartitionRecords(_PartitionRecords):  # type: ignore[misc]  # as above
    """The records of one partition of a fetch; begins anew, tolerantly, where a name can't be decoded."""

    def __init__(self, tp: Any, records: Any, aborted: Any, fetch_offset: int, *more: Any) -> None:
        super().__init__(tp, records, aborted, fetch_offset, *more)
        self._again = (tp, aborted, more)

    def __next__(self) -> Any:
        try:
            return super().__next__()
        except UnicodeDecodeError:
            if isinstance(self._records, TolerantRecords):
                raise
            # Begun anew from the first batch, for the transactions in it; what was returned before is passed over.
            tp, aborted, more = self._again
            super().__init__(tp, TolerantRecords(self._records.data), aborted, self.next_fetch_offset, *more)
            return super().__next__()


def _skip(buffer: bytearray, pos: int) -> int:
    length: int
    length, pos = decode_varint(buffer, pos)
    return pos + max(0, length)


def tolerate() -> None:
    """Make every aiokafka consumer of this process, Faust's as well, read any header names. Doing it twice is once.

    Raises `GuardError` unless the installed aiokafka is the one that the guard was made for.
    """
    if (found := version("aiokafka")) != PINNED:
        raise GuardError(f"aiokafka is {found}, not {PINNED}: callyard/header_names.py was made for the pinned version")
    for name, guarded in (("MemoryRecords", KeptRecords), ("PartitionRecords", TolerantPartitionRecords)):
        patched(fetcher, name)
        setattr(fetcher, name, guarded)
