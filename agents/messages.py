"""AMI messages become frozen records here, and nowhere else; the mirror never sees a dictionary.

Ours are only the channels that carry ``CALLYARD_CONFERENCE`` and ``CALLYARD_STAY`` (Asterisk sends them with each
event, as ``channelvars`` in manager.conf names them, and in a ``Status`` with ``Variables``). Whatever belongs to
others reads as ``None``; what is ours and cannot be understood reads as `Unreadable`, with the reason. Reading never
raises.

The channel's variables (see docs/gateway.md): ``CALLYARD_MARK`` is ``<stay>x<attempt>``, ``CALLYARD_FAILED`` is
``<stay>x<attempt>/<DIALSTATUS>/<HANGUPCAUSE>/<SIP code or 0>``. Marks of an earlier stay count as none.
``CALLYARD_AFTER`` is ``<ended or lost>/<HANGUPCAUSE>``: how the talk ended that the stay follows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from callyard.records import CONFERENCE_PATTERN, MAX_ATTEMPT, AfterTalk, FailureReason, LeftReason

Headers = Mapping[str, str | list[str]]

VARIABLES = ("CALLYARD_CONFERENCE", "CALLYARD_STAY", "CALLYARD_STATE", "CALLYARD_MARK", "CALLYARD_FAILED",
             "CALLYARD_AFTER")  # fmt: skip
"""What the agent reads from a channel."""

_NUMBER = re.compile(r"[0-9]{1,6}")
_MARK = re.compile(r"([0-9]{1,6})x([0-9]{1,6})")
_FAILED = re.compile(r"([0-9]{1,6})x([0-9]{1,6})/([A-Z_]{0,32})/([0-9]{0,3})/([0-9]{0,3})")
_AFTER = re.compile(r"(ended|lost)/([0-9]{0,3})")
_UNIQUEID = re.compile(r"[A-Za-z0-9._-]{1,150}")


class ChannelState(str, Enum):
    """``CALLYARD_STATE``: what the dialplan says the channel is doing."""

    PARKED = "parked"
    DIALING = "dialing"
    CONNECTED = "connected"
    TELLING = "telling"
    """Being told something, after which the caller waits on."""
    ASKING = "asking"
    """Being asked for a number, or between two stays: number and stay may not belong together."""
    OVER = "over"
    """The longest wait was over: the caller is being told, then hung up."""
    FULL = "full"
    """The lot was full: the caller is being told, then hung up."""
    GIVEN_UP = "given-up"
    """The conference could not be reached: the caller is being told, then hung up."""
    REMOVED = "removed"
    """The caller was removed from the conference: being told so, then hung up."""


ENDINGS = {
    ChannelState.OVER: LeftReason.TIMED_OUT,
    ChannelState.GIVEN_UP: LeftReason.GIVEN_UP,
    ChannelState.REMOVED: LeftReason.REMOVED,
}
"""States in which a stay is as good as over, and why."""


@dataclass(frozen=True)
class Failure:
    """Why a dial brought no connection, as Asterisk says it."""

    reason: FailureReason
    hangup_cause: int | None = None
    sip_code: int | None = None


@dataclass(frozen=True)
class After:
    """How the talk ended that a stay follows."""

    talk: AfterTalk
    hangup_cause: int | None = None


@dataclass(frozen=True)
class Marks:
    """The state that a channel carries. ``mark`` is the attempt of this stay that was carried out last; 0: none."""

    conference: str
    stay: int
    state: ChannelState
    mark: int = 0
    failure: Failure | None = None
    """How attempt ``mark`` failed; None as long as it hasn't."""
    after: After | None = None


@dataclass(frozen=True)
class Parked:
    """``ParkedCall``: the channel is in the lot."""

    uniqueid: str
    channel: str
    marks: Marks
    caller: str = ""
    seconds: int = 0
    """How long it has been there."""


@dataclass(frozen=True)
class DialBegan:
    """``DialBegin``: Asterisk dials for this channel, so the redirect was consumed."""

    uniqueid: str
    channel: str
    marks: Marks


@dataclass(frozen=True)
class DialEnded:
    """``DialEnd``: only ``ANSWER`` decides; failures are read from the marks when the call is parked again."""

    uniqueid: str
    channel: str
    marks: Marks
    answered: bool


@dataclass(frozen=True)
class HungUp:
    """``Hangup``: the call is over."""

    uniqueid: str
    cause: int | None
    marks: Marks | None


@dataclass(frozen=True)
class Starred:
    """``DTMFEnd`` of ``*``: the caller pressed it. No other digit is ever read, or sent to the agent."""

    uniqueid: str
    channel: str
    marks: Marks


@dataclass(frozen=True)
class Channel:
    """An entry of ``Status``."""

    uniqueid: str
    channel: str
    marks: Marks
    bridged: bool
    caller: str = ""


@dataclass(frozen=True)
class Unreadable:
    """A message about one of our channels that cannot be understood; set aside with its reason."""

    reason: str


Message = Parked | DialBegan | DialEnded | HungUp | Starred


class _UnreadableError(ValueError):
    pass


def read_event(headers: Headers) -> Message | Unreadable | None:
    """One live event; None if it is not about a call of ours, or of a kind that decides nothing."""
    kind = _text(headers, "Event")
    read = _READERS.get(kind)
    try:
        return None if read is None else read(headers)
    except _UnreadableError as error:
        return Unreadable(f"{kind}: {error}")


def read_parked(headers: Headers) -> Parked | Unreadable | None:
    """One entry of the list ``ParkedCalls`` (its fields are those of the event)."""
    try:
        return _parked(headers)
    except _UnreadableError as error:
        return Unreadable(f"ParkedCalls: {error}")


def read_channel(headers: Headers) -> Channel | Unreadable | None:
    """One entry of the list ``Status``, asked for with ``Variables: CALLYARD_…``."""
    try:
        marks = _marks(_variables(headers, "Variable"))
        if marks is None:
            return None
        uniqueid, channel = _identity(headers, "")
        return Channel(
            uniqueid, channel, marks, bool(_text(headers, "BridgeID")), _caller(_text(headers, "CallerIDNum"))
        )
    except _UnreadableError as error:
        return Unreadable(f"Status: {error}")


def failure_reason(dial_status: str, hangup_cause: int, sip_code: int) -> FailureReason:
    """What a failed dial means. The SIP code decides before the hangup cause, that before DIALSTATUS.

    Measured: a node's 404 shows as DialEnd ``NOANSWER``, DIALSTATUS ``CHANUNAVAIL`` and cause 1, so the status
    alone says nothing. More statuses are the dialplan's own: ``BADURI`` (it refused the URI, or the notice),
    ``TOLD`` (it told the caller something) and ``REDIRECTED`` (a redirect tore the caller out of its dial). Causes
    are those of Q.850, SIP codes those of RFC 3261.
    """
    if dial_status in _OWN_STATUS:
        return _OWN_STATUS[dial_status]
    by_code = _BY_SIP_CODE.get(sip_code) or (FailureReason.UNREACHABLE if sip_code in range(500, 600) else None)
    return by_code or _BY_CAUSE.get(hangup_cause) or _BY_DIAL_STATUS.get(dial_status, FailureReason.OTHER)


_OWN_STATUS = {"BADURI": FailureReason.BAD_INSTRUCTION, "TOLD": FailureReason.TOLD}
_BY_SIP_CODE = {
    404: FailureReason.NOT_FOUND, 410: FailureReason.NOT_FOUND, 604: FailureReason.NOT_FOUND,
    401: FailureReason.REFUSED, 403: FailureReason.REFUSED, 407: FailureReason.REFUSED, 603: FailureReason.REFUSED,
    486: FailureReason.BUSY, 600: FailureReason.BUSY,
    408: FailureReason.TIMEOUT, 480: FailureReason.TIMEOUT,
}  # fmt: skip
_BY_CAUSE = {
    1: FailureReason.NOT_FOUND,
    17: FailureReason.BUSY,
    18: FailureReason.TIMEOUT, 19: FailureReason.TIMEOUT,
    21: FailureReason.REFUSED,
    2: FailureReason.UNREACHABLE, 3: FailureReason.UNREACHABLE, 20: FailureReason.UNREACHABLE,
    27: FailureReason.UNREACHABLE, 34: FailureReason.UNREACHABLE, 38: FailureReason.UNREACHABLE,
    41: FailureReason.UNREACHABLE, 42: FailureReason.UNREACHABLE, 44: FailureReason.UNREACHABLE,
}  # fmt: skip
_BY_DIAL_STATUS = {
    "BUSY": FailureReason.BUSY, "NOANSWER": FailureReason.TIMEOUT,
    "CHANUNAVAIL": FailureReason.UNREACHABLE, "CONGESTION": FailureReason.UNREACHABLE,
}  # fmt: skip


def _parked(headers: Headers) -> Parked | None:
    marks = _marks(_variables(headers, "ParkeeChanVariable"))
    if marks is None:
        return None
    uniqueid, channel = _identity(headers, "Parkee")
    seconds = _text(headers, "ParkingDuration")
    return Parked(
        uniqueid,
        channel,
        marks,
        _caller(_text(headers, "ParkeeCallerIDNum")),
        int(seconds) if _NUMBER.fullmatch(seconds) else 0,
    )


def _hung_up(headers: Headers) -> HungUp:
    # Of any channel: one of ours may have lost its variables' text, and what the mirror doesn't know it ignores.
    uniqueid, cause = _identity(headers, "")[0], _text(headers, "Cause")
    try:
        marks = _marks(_variables(headers, "ChanVariable"))
    except _UnreadableError:
        marks = None
    return HungUp(uniqueid, int(cause) if _NUMBER.fullmatch(cause) and int(cause) <= 255 else None, marks)


def _dial_began(headers: Headers) -> DialBegan | None:
    marks = _marks(_variables(headers, "ChanVariable"))
    return None if marks is None else DialBegan(*_identity(headers, ""), marks)


def _dial_ended(headers: Headers) -> DialEnded | None:
    marks = _marks(_variables(headers, "ChanVariable"))
    answered = _text(headers, "DialStatus") == "ANSWER"
    return None if marks is None else DialEnded(*_identity(headers, ""), marks, answered)


def _starred(headers: Headers) -> Starred | None:
    if (_text(headers, "Digit"), _text(headers, "Direction")) != ("*", "Received"):
        return None
    marks = _marks(_variables(headers, "ChanVariable"))
    return None if marks is None else Starred(*_identity(headers, ""), marks)


_READERS: Mapping[str, Callable[[Headers], Message | None]] = {
    "ParkedCall": _parked,
    "DialBegin": _dial_began,
    "DialEnd": _dial_ended,
    "DTMFEnd": _starred,
    "Hangup": _hung_up,
}


def _marks(variables: Mapping[str, str]) -> Marks | None:
    conference, stay = variables.get("CALLYARD_CONFERENCE", ""), variables.get("CALLYARD_STAY", "")
    if not conference or not stay:
        # Not ours, or (between the dialplan's two steps) not ours yet.
        return None
    if not re.fullmatch(CONFERENCE_PATTERN[1:-1], conference):
        raise _UnreadableError(f"CALLYARD_CONFERENCE is no conference number of 5 to 11 digits: {conference!r:.60}")
    if not _NUMBER.fullmatch(stay) or int(stay) < 1:
        raise _UnreadableError(f"CALLYARD_STAY is no number from 1 to 999999: {stay!r:.60}")
    try:
        state = ChannelState(variables.get("CALLYARD_STATE", ""))
    except ValueError:
        raise _UnreadableError(f"CALLYARD_STATE is unknown: {variables.get('CALLYARD_STATE')!r:.60}") from None
    mark = _mark(variables.get("CALLYARD_MARK", ""), int(stay))
    failure = _failure(variables.get("CALLYARD_FAILED", ""), int(stay), mark)
    return Marks(conference, int(stay), state, mark, failure, _after(variables.get("CALLYARD_AFTER", "")))


def _after(value: str) -> After | None:
    if not value:
        return None
    match = _AFTER.fullmatch(value)
    if match is None:
        raise _UnreadableError(f"CALLYARD_AFTER is not <ended or lost>/<cause>: {value!r:.60}")
    cause = int(match[2] or 0)
    return After(AfterTalk(match[1]), cause if 0 < cause <= 255 else None)


def _mark(value: str, stay: int) -> int:
    if not value:
        return 0
    match = _MARK.fullmatch(value)
    if match is None or int(match[2]) > MAX_ATTEMPT:
        raise _UnreadableError(f"CALLYARD_MARK is not <stay>x<attempt>, to {MAX_ATTEMPT}: {value!r:.60}")
    return int(match[2]) if int(match[1]) == stay else 0


def _failure(value: str, stay: int, mark: int) -> Failure | None:
    if not value:
        return None
    match = _FAILED.fullmatch(value)
    if match is None:
        raise _UnreadableError(f"CALLYARD_FAILED is not <stay>x<attempt>/<status>/<cause>/<code>: {value!r:.60}")
    if (int(match[1]), int(match[2])) != (stay, mark):
        return None
    cause, code = int(match[4] or 0), int(match[5] or 0)
    return Failure(
        failure_reason(match[3], cause, code),
        cause if 0 < cause <= 255 else None,
        code if 100 <= code <= 699 else None,
    )


def _variables(headers: Headers, name: str) -> dict[str, str]:
    found: dict[str, str] = {}
    value = headers.get(name, [])
    for item in value if isinstance(value, list) else [value]:
        variable, _, content = item.partition("=")
        if variable in VARIABLES:
            # Status writes "(null)" for what is not set.
            found[variable] = "" if content == "(null)" else content
    return found


def _identity(headers: Headers, prefix: str) -> tuple[str, str]:
    uniqueid, channel = _text(headers, f"{prefix}Uniqueid"), _text(headers, f"{prefix}Channel")
    if not _UNIQUEID.fullmatch(uniqueid):
        raise _UnreadableError(f"{prefix}Uniqueid is missing or not of the form of one: {uniqueid!r:.60}")
    if not channel:
        raise _UnreadableError(f"{prefix}Channel is missing")
    return uniqueid, channel


def _text(headers: Headers, name: str) -> str:
    value = headers.get(name, "")
    return value if isinstance(value, str) else "".join(value[-1:])


def _caller(number: str) -> str:
    return "" if number in ("<unknown>", "anonymous", "Anonymous") else number[:100]
