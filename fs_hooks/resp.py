"""What Redis says to a subscriber, without IO: bytes in, replies out (RESP 2, which Redis speaks unless asked for 3).

Why not redis-py: of it the hook would use one command. It takes 11 MB of memory and a quarter second to import, its
PubSub connects and subscribes again by itself without saying that messages may be missing, and a message has no bound.

A value longer than `MAX_VALUE_BYTES` is passed over without being held: BigBlueButton says much on this channel that
nobody here asked for. Where the position in the stream is lost, the connection is over (`RespError`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MAX_VALUE_BYTES = 1024 * 1024
"""A meeting's creation has some 4 kB, and the texts that its creator chose."""
MAX_LINE_BYTES = 8 * 1024
MAX_ITEMS = 64
MAX_LENGTH = 1 << 40
"""Redis itself stops at 512 MB; this only keeps the number within reason."""


class RespError(Exception):
    """What came isn't RESP: only a new connection helps."""


@dataclass(frozen=True)
class Refused:
    """Redis's error reply."""

    text: str


@dataclass(frozen=True)
class TooLarge:
    """A value that was passed over."""

    bytes: int


Value = bytes | int | None | Refused | TooLarge
Reply = Value | list[Value]


class Reader:
    """Reads one connection's bytes; holds at most one unfinished value."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._items: list[Value] = []
        self._wanted = 0
        self._length: int | None = None
        self._skipped = 0

    @property
    def buffered(self) -> int:
        """Bytes that are held."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[Reply]:
        """Take the next bytes and return the replies that are whole now. Raises `RespError`."""
        self._buffer += data
        replies: list[Reply] = []
        while (found := self._next()) is not None:
            replies.append(found[0])
        return replies

    def _next(self) -> tuple[Reply] | None:
        while True:
            found = self._value()
            if found is None:
                return None
            value = found[0]
            if not self._wanted:
                return (value,)
            self._items.append(value)
            if len(self._items) == self._wanted:
                items, self._items, self._wanted = self._items, [], 0
                return (items,)

    def _value(self) -> tuple[Value] | None:
        while self._length is None:
            line = self._line()
            if line is None:
                return None
            kind, text = line[:1], line[1:]
            if kind == b"+":
                return (text,)
            if kind == b"-":
                return (Refused(text.decode(errors="replace")),)
            if kind == b":":
                return (_number(text),)
            if kind == b"$":
                self._length = _number(text)
                if self._length == -1:
                    self._length = None
                    return (None,)
            elif kind == b"*" and not self._wanted:
                self._wanted = _number(text)
                if not 0 < self._wanted <= MAX_ITEMS:
                    raise RespError(f"an array of {self._wanted} items")
            else:
                raise RespError(f"{line!r:.60} begins no reply")
            if self._length is not None and not 0 <= self._length <= MAX_LENGTH:
                raise RespError(f"a value of {self._length} bytes")
        return self._bulk(self._length)

    def _bulk(self, length: int) -> tuple[Value] | None:
        if length > MAX_VALUE_BYTES:
            passed = min(length + 2 - self._skipped, len(self._buffer))
            del self._buffer[:passed]
            self._skipped += passed
            if self._skipped < length + 2:
                return None
            self._length, self._skipped = None, 0
            return (TooLarge(length),)
        if len(self._buffer) < length + 2:
            return None
        if self._buffer[length : length + 2] != b"\r\n":
            raise RespError("a value that doesn't end where it should")
        value = bytes(self._buffer[:length])
        del self._buffer[: length + 2]
        self._length = None
        return (value,)

    def _line(self) -> bytes | None:
        end = self._buffer.find(b"\r\n", 0, MAX_LINE_BYTES)
        if end < 0:
            if len(self._buffer) >= MAX_LINE_BYTES:
                raise RespError(f"{bytes(self._buffer[:60])!r} begins no reply")
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line


def _number(text: bytes) -> int:
    if not text.removeprefix(b"-").isdigit() or len(text) > 20:
        raise RespError(f"{text!r:.60} is no number")
    return int(text)


def command(words: Sequence[str]) -> bytes:
    """A command as it goes over the wire: lengths lead, so that no text can be two commands."""
    encoded = [word.encode() for word in words]
    return b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded)
