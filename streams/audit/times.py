"""Moments as people give them, and as they are shown: the zone is always explicit. Pure."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from callyard.errors import CommandError

_RFC3339 = re.compile(
    r"(?P<day>\d{4}-\d\d-\d\d)[Tt ](?P<time>\d\d:\d\d:\d\d)(?:\.(?P<part>\d{1,9}))?(?P<zone>[Zz]|[+-]\d\d:\d\d)?"
)
_RELATIVE = re.compile(r"-(?:(?P<d>\d{1,6})d)?(?:(?P<h>\d{1,6})h)?(?:(?P<m>\d{1,6})m)?(?:(?P<s>\d{1,8})s)?")
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
MOMENT_HELP = "RFC 3339 with its zone (2026-11-24T08:15:00Z, …+01:00), or relative to now (-2h, -1d12h, -90s, now)"


class MomentError(CommandError):
    """A time cannot be read. The text says what is wrong and which forms there are."""

    status = 2


def moment(text: str, now_ms: int) -> int:
    """Milliseconds since 1970-01-01 UTC of a moment: RFC 3339, or relative to ``now_ms``. Raises `MomentError`."""
    given = text.strip()
    if given == "now":
        return now_ms
    if (found := _RELATIVE.fullmatch(given)) is not None and len(given) > 1:
        days, hours, minutes, seconds = (int(part or 0) for part in found.group("d", "h", "m", "s"))
        return max(0, now_ms - (((days * 24 + hours) * 60 + minutes) * 60 + seconds) * 1000)
    found = _RFC3339.fullmatch(given)
    if found is None:
        raise MomentError(f"{text!r} is no time: write {MOMENT_HELP}")
    if found["zone"] is None:
        raise MomentError(f"{text!r} names no zone: add Z (UTC) or an offset, for example {given}Z or {given}+01:00")
    zone = found["zone"].upper().replace("Z", "+00:00")
    try:
        at = datetime.fromisoformat(f"{found['day']}T{found['time']}{zone}")
    except ValueError as error:
        raise MomentError(f"{text!r} is no time: {error}") from None
    # A part of a millisecond counts as a whole one that has begun.
    return max(0, int((at - _EPOCH) / timedelta(milliseconds=1)) + int((found["part"] or "0").ljust(3, "0")[:3]))


def zone_of(name: str) -> tzinfo:
    """The time zone of this IANA name (``UTC``, ``Europe/Berlin``). Raises `MomentError`."""
    if name.upper() in {"UTC", "Z"}:
        return timezone.utc
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise MomentError(f"{name!r} is no time zone: write UTC or an IANA name such as Europe/Berlin") from None


def shown(ms: int, zone: tzinfo = timezone.utc) -> str:
    """A moment as RFC 3339 with milliseconds and its zone: ``2026-11-24T08:15:00.250Z``.

    One that is no date of the calendar (whoever writes a record can give it any) is shown as the number that it is.
    """
    try:
        text = (_EPOCH + timedelta(milliseconds=ms)).astimezone(zone).isoformat(timespec="milliseconds")
    except OverflowError:
        return f"{ms} ms after 1970"
    return text.replace("+00:00", "Z")


def lasted(ms: int) -> str:
    """A duration for people: ``250 ms``, ``3.2 s``, ``4 min 5 s``, ``2 h 3 min``."""
    if ms < 0:
        return f"-{lasted(-ms)}"
    if ms < 1000:
        return f"{ms} ms"
    if ms < 60_000:
        return f"{ms / 1000:.1f} s"
    seconds = ms // 1000
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    if seconds < 86_400:
        return f"{seconds // 3600} h {seconds % 3600 // 60} min"
    return f"{seconds // 86_400} d {seconds % 86_400 // 3600} h"
