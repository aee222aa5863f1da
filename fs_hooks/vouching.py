"""Vouching: how the hook tells FreeSWITCH that a meeting runs under a number, though no conference is there yet.

In BigBlueButton a meeting has a FreeSWITCH conference only once somebody joined audio. The node's dialplan refuses
numbers without a conference, unless the hook vouches for them: it keeps a global variable for each such number, which
holds the second (Unix time, the node's clock) until which it counts, and the dialplan compares.

Why global variables: BigBlueButton loads neither mod_hash nor mod_db (its modules.conf.xml), and an edit of that file
is lost with the next upgrade. ``global_setvar`` and ``cond`` are mod_commands', ``strepoch`` is mod_dptools', and those
two BigBlueButton can't do without. None of the stores has an expiry of its own (mod_hash's ``insert`` and mod_db's
neither), so the time stands in the value; a hook that dies leaves entries that count for nothing soon after.

What this must never do: put a number into a command that isn't one. The socket's commands are lines, ``global_setvar``
splits at ``=``, and variables can be written to from there; so numbers are checked where commands are made.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from callyard.records import CONFERENCE_PATTERN
from fs_hooks.client import EslError, Link

PREFIX = "callyard_vouched_"
"""The variables' names: this and the conference number. Rendered into the dialplan, too."""

_ENTRY = re.compile(rf"{PREFIX}([0-9]{{5,11}})=([0-9]{{1,12}})")


class VouchingError(EslError):
    """FreeSWITCH doesn't do what vouching needs. The text says what it answered."""


@dataclass(frozen=True)
class Entry:
    """A number, and the Unix time in seconds until which it is vouched for; None: not any more."""

    number: str
    until: int | None

    def __post_init__(self) -> None:
        if re.fullmatch(CONFERENCE_PATTERN[1:-1], self.number) is None:
            raise ValueError(f"not a conference number: {self.number!r:.60}")
        if self.until is not None and self.until < 0:
            raise ValueError(f"no time: {self.until}")

    @property
    def words(self) -> tuple[str, str]:
        """The ``api`` command that brings FreeSWITCH to it. A variable without a value is removed."""
        return "global_setvar", f"{PREFIX}{self.number}={'' if self.until is None else self.until}"


class Vouching:
    """What FreeSWITCH holds, as far as is known, and what has to be changed. Pure: no IO, no clock."""

    def __init__(self, seconds: int) -> None:
        self._seconds = seconds
        self._held: dict[str, int] = {}

    @property
    def held(self) -> Mapping[str, int]:
        """The numbers that FreeSWITCH has confirmed, and until when."""
        return self._held

    def found(self, dump: str) -> None:
        """Take over what FreeSWITCH holds: the answer to ``global_getvar``, asked on a new connection.

        It may be a FreeSWITCH that restarted and holds nothing, or hold what an earlier hook left there.
        """
        entries = (_ENTRY.fullmatch(line) for line in dump.splitlines())
        self._held = {entry[1]: int(entry[2]) for entry in entries if entry is not None}

    def due(self, numbers: Collection[str], now: int) -> list[Entry]:
        """What to set now, in Unix seconds, so that these numbers and no others are vouched for.

        What has more than two thirds of its time left waits. Raises `ValueError` for what is no conference number.
        """
        gone = [Entry(number, None) for number in self._held if number not in numbers]
        late = now + self._seconds * 2 // 3
        # An entry that holds for longer than one of ours can was written by a clock that ran ahead.
        wanted = [
            Entry(number, now + self._seconds)
            for number in sorted(numbers)
            if not late < self._held.get(number, 0) <= now + self._seconds
        ]
        return gone + wanted

    def confirmed(self, entry: Entry) -> None:
        """FreeSWITCH has carried it out."""
        if entry.until is None:
            self._held.pop(entry.number, None)
        else:
            self._held[entry.number] = entry.until


async def take_over(link: Link, vouching: Vouching) -> None:
    """Ask a newly connected FreeSWITCH what it holds. Raises `EslError`."""
    vouching.found(await link.api("global_getvar"))


async def apply(link: Link, vouching: Vouching, numbers: Collection[str], now: int) -> None:
    """Bring FreeSWITCH to vouch for these numbers alone; returns when it has confirmed all of it.

    To be called when the numbers change (before the registration is published, so that no caller comes sooner than the
    entry) and at least every third of the entries' time. Raises `EslError`; `VouchingError` where the command isn't
    there or isn't understood.
    """
    for entry in vouching.due(numbers, now):
        answer = await link.api(*entry.words)
        if answer.strip() != "+OK":
            raise VouchingError(
                f"FreeSWITCH answers {entry.words[0]} with {answer!r:.100}: mod_commands must be loaded"
            )
        vouching.confirmed(entry)
