"""FreeSWITCH's event socket protocol without IO: bytes in, frames out; commands in, bytes out.

Why it is apart from sockets: each recorded byte sequence can be tried whole, byte by byte and split at every position,
and nothing here can ever wait. It must never guess: either a frame is read as FreeSWITCH meant it, or it is named
(`Unreadable`), or, where the position in the stream itself is lost, the connection is over (`RemoteProtocolError`).

The protocol, as mod_event_socket writes it and the recordings in ``tests/fixtures/esl`` show it:

* A frame is a head of ``Name: value`` lines ended by an empty line, then ``Content-Length`` bytes of body. The order
  of the head's lines means nothing: answers have ``Content-Type`` first, events ``Content-Length``.
* A ``text/event-plain`` body is a head of its own, with percent-encoded values, and its own ``Content-Length`` where
  the event has a body. An empty value is written ``_undef_``.
* A ``text/event-json`` body is one JSON object of texts; a header with several values is a list; ``_body`` is the body.
* Names may occur twice. A floor change carries the conference's headers, and then all of them again with the
  channel's: FreeSWITCH appends. The first one counts, in both formats, because what comes first is what the event is
  about, and what is appended later (a channel's variables among it) is partly the caller's to choose.
* Each command is answered once, in order: ``api`` by ``api/response``, others by ``command/reply``; an ``api`` that
  isn't permitted also by ``command/reply``. Events come in between at any time.

Two errors, because they are mended by different people: `LocalProtocolError`, we would have broken the rules, and
`RemoteProtocolError`, the peer did.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

MAX_LINE_BYTES = 8 * 1024
"""The longest line of a frame's head; FreeSWITCH's own are below 200 bytes."""
MAX_HEAD_BYTES = 64 * 1024
MAX_BODY_BYTES = 16 * 1024 * 1024
"""The largest body: a snapshot has some 700 bytes for each member of each conference."""


class ProtocolError(Exception):
    """The rules of the event socket protocol are broken."""


class LocalProtocolError(ProtocolError):
    """We were about to break the rules."""


class RemoteProtocolError(ProtocolError):
    """The peer broke the rules so that the position in its stream is lost: only a new connection helps.

    ``frames`` are those that were whole before it in the same bytes; ``rubbish`` begins where it went wrong.
    """

    def __init__(self, text: str, rubbish: bytes) -> None:
        super().__init__(f"the peer broke the event socket protocol: {text}")
        self.frames: list[Frame] = []
        self.rubbish = rubbish[:1000]


@dataclass(frozen=True)
class AuthRequest:
    """FreeSWITCH asks for the password: the first frame of every connection."""


@dataclass(frozen=True)
class CommandReply:
    """The answer to a command other than a permitted ``api``."""

    text: str
    """``+OK …`` or ``-ERR …``."""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ApiResponse:
    """The answer to an ``api`` command."""

    body: str


@dataclass(frozen=True)
class Event:
    """One event, in whichever format it came; values are decoded."""

    headers: Mapping[str, str]
    body: str = ""


@dataclass(frozen=True)
class DisconnectNotice:
    """FreeSWITCH is about to close the connection; with ``linger`` only after what is still to be said."""

    text: str
    linger: bool = False


@dataclass(frozen=True)
class RudeRejection:
    """FreeSWITCH's access list doesn't allow this address."""

    text: str


@dataclass(frozen=True)
class UnknownFrame:
    """A whole frame of a content type that this program doesn't know."""

    content_type: str
    body: bytes


@dataclass(frozen=True)
class Unreadable:
    """A whole frame of a known content type whose body isn't what that type says; the frames after it are sound."""

    content_type: str
    reason: str
    body: bytes


Frame = AuthRequest | CommandReply | ApiResponse | Event | DisconnectNotice | RudeRejection | UnknownFrame | Unreadable


class Reader:
    """Reads one connection's bytes. It holds at most one unfinished frame: never more than the limits and one feed."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0
        self._lines: list[bytes] = []
        self._head_bytes = 0
        self._head: dict[str, str] | None = None
        self._length = 0
        self._error: RemoteProtocolError | None = None

    @property
    def buffered(self) -> int:
        """Bytes of the unfinished frame that are held."""
        return len(self._buffer) + self._head_bytes

    @property
    def at_boundary(self) -> bool:
        """Whether the bytes so far end with a whole frame: a connection that closes elsewhere was cut."""
        return not self._buffer and not self._lines and self._head is None

    def feed(self, data: bytes) -> list[Frame]:
        """Take the next bytes and return the frames that are whole now.

        Raises `RemoteProtocolError`, with the frames before it in its ``frames``, once the stream makes no sense.
        """
        if self._error is not None:
            raise LocalProtocolError("a reader that has raised an error reads no more: connect anew") from self._error
        self._buffer += data
        frames: list[Frame] = []
        try:
            while (frame := self._next()) is not None:
                frames.append(frame)
        except RemoteProtocolError as error:
            error.frames = frames
            self._error = error
            self._buffer.clear()
            raise
        return frames

    def _next(self) -> Frame | None:
        if self._head is None:
            self._head = self._read_head()
        if self._head is None or len(self._buffer) < self._length:
            return None
        head, body = self._head, bytes(self._buffer[: self._length])
        del self._buffer[: self._length]
        self._head, self._length = None, 0
        return _frame(head, body)

    def _read_head(self) -> dict[str, str] | None:
        # Lines are checked as they end, so that a peer that never sends an empty line is found out at its first one.
        while (end := self._buffer.find(b"\n", self._searched)) >= 0:
            line = bytes(self._buffer[:end])
            if line and (len(line) > MAX_LINE_BYTES or _HEAD_LINE.fullmatch(line) is None):
                raise RemoteProtocolError(
                    f"{line!r:.100} is no head line; is it FreeSWITCH that listens there?", bytes(self._buffer)
                )
            del self._buffer[: end + 1]
            self._searched = 0
            if line:
                self._lines.append(line)
                self._head_bytes += end + 1
                if self._head_bytes > MAX_HEAD_BYTES:
                    raise RemoteProtocolError(f"a head has more than {MAX_HEAD_BYTES} bytes", line)
            elif self._lines:  # otherwise a newline between two frames, which says nothing
                lines, self._lines, self._head_bytes = self._lines, [], 0
                head = _head(lines)
                self._length = _content_length(head, lines)
                return head
        self._searched = len(self._buffer)
        if len(self._buffer) > MAX_LINE_BYTES:
            raise RemoteProtocolError(f"a head line has more than {MAX_LINE_BYTES} bytes", bytes(self._buffer))
        return None


_HEAD_LINE = re.compile(rb"[A-Za-z0-9_-]{1,200}: ?.*")


def _head(lines: list[bytes]) -> dict[str, str]:
    head: dict[str, str] = {}
    for line in lines:
        name, _, value = line.decode(errors="replace").partition(":")
        head.setdefault(name, value.strip())
    return head


def _content_length(head: Mapping[str, str], lines: list[bytes]) -> int:
    if "Content-Type" not in head:
        raise RemoteProtocolError(f"a head names no Content-Type: {sorted(head)!r:.100}", b"\n".join(lines))
    lengths = {line.partition(b":")[2].strip() for line in lines if line.startswith(b"Content-Length:")}
    if not lengths:
        return 0
    if len(lengths) > 1 or re.fullmatch(rb"[0-9]{1,10}", length := lengths.pop()) is None:
        raise RemoteProtocolError("the Content-Length is not one number", b"\n".join(lines))
    if int(length) > MAX_BODY_BYTES:
        raise RemoteProtocolError(f"a body of {int(length)} bytes (at most {MAX_BODY_BYTES})", b"\n".join(lines))
    return int(length)


def _frame(head: Mapping[str, str], body: bytes) -> Frame:
    content_type = head["Content-Type"]
    read = _FRAMES.get(content_type)
    if read is None:
        return UnknownFrame(content_type, body)
    try:
        return read(head, body)
    except _UnreadableError as error:
        return Unreadable(content_type, str(error), body)


class _UnreadableError(ValueError):
    pass


def _command_reply(head: Mapping[str, str], _body: bytes) -> Frame:
    if "Reply-Text" not in head:
        raise _UnreadableError("a reply without Reply-Text")
    return CommandReply(head["Reply-Text"], dict(head))


def _plain_event(_head: Mapping[str, str], body: bytes) -> Frame:
    text, _, rest = body.partition(b"\n\n")
    headers: dict[str, str] = {}
    for line in text.decode(errors="replace").rstrip("\n").split("\n"):
        name, colon, value = line.partition(": ")
        if not colon:
            raise _UnreadableError(f"an event's line {line!r:.60} has no colon")
        if name not in headers:
            headers[name] = "" if value == "_undef_" else unquote(value) if "%" in value else value
    length = headers.get("Content-Length")
    if length is None:
        return Event(headers)
    if re.fullmatch("[0-9]{1,10}", length) is None or int(length) > len(rest):
        raise _UnreadableError(f"an event's own Content-Length {length!r:.20}, with {len(rest)} bytes there")
    return Event(headers, rest[: int(length)].decode(errors="replace"))


def _json_event(_head: Mapping[str, str], body: bytes) -> Frame:
    try:
        pairs = json.loads(body.decode(errors="replace"), object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:
        raise _UnreadableError(f"an event that is not JSON: {error}") from None
    if not isinstance(pairs, _Pairs):
        raise _UnreadableError("an event that is no JSON object")
    headers: dict[str, str] = {}
    for name, value in pairs:
        headers.setdefault(name, _json_text(name, value))
    return Event(headers, headers.pop("_body", ""))


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with its names as they come: a dict would keep the last of two, the first counts."""


def _json_text(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if type(value) is list and all(isinstance(part, str) for part in value):
        return "ARRAY::" + "|:".join(value)  # as the plain format writes it
    raise _UnreadableError(f"an event's header {name!r:.60} is no text")


def _disconnect_notice(head: Mapping[str, str], body: bytes) -> Frame:
    return DisconnectNotice(body.decode(errors="replace").strip(), linger=head.get("Content-Disposition") == "linger")


_FRAMES: Mapping[str, Callable[[Mapping[str, str], bytes], Frame]] = {
    "auth/request": lambda _head, _body: AuthRequest(),
    "command/reply": _command_reply,
    "api/response": lambda _head, body: ApiResponse(body.decode(errors="replace")),
    "text/event-plain": _plain_event,
    "text/event-json": _json_event,
    "text/disconnect-notice": _disconnect_notice,
    "text/rude-rejection": lambda _head, body: RudeRejection(body.decode(errors="replace").strip()),
}


def command(*words: str) -> bytes:
    """A command as it goes over the wire. Raises `LocalProtocolError` for what would be two commands, or none."""
    text = " ".join(words)
    if not text.strip() or any(character in text for character in "\r\n\0"):
        raise LocalProtocolError("a command is one line of text; this one is empty or has CR, LF or NUL in it")
    return text.encode() + b"\n\n"
