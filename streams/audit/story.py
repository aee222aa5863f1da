"""The story of one call: its happenings in order, what it waited for, and what is missing. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from streams.audit.fold import DeskState
from streams.audit.happenings import Happening, What, caller_of, node_of
from streams.audit.times import shown
from streams.rows import ACTIVE, StayRow, StayState

NOT_REGISTERED = "the conference was not registered anywhere"
DIALED = "it was being dialled or told something"
PAUSED = "pause after a dial that failed"
HELD = "after a talk: whether the conference is over"
BEHIND = "the stream had yet to come to it"


@dataclass
class Stay:
    """One wait of a call for one number, and the talk that it led to."""

    conference: str
    stay: int
    since_ms: int
    row: StayRow
    follows: str | None = None
    """How the talk before it ended; None: the caller had entered the number."""
    attempts: int = 0
    failures: list[str] = field(default_factory=list)
    node_id: str | None = None
    connected_ms: int | None = None
    ended_ms: int | None = None
    end: str | None = None
    waits: dict[str, int] = field(default_factory=dict)
    """Milliseconds waited, by what for."""
    complete: bool = True
    """Whether its beginning is known."""
    registered: tuple[str, ...] = ()
    """The nodes that it was registered at when the stay began."""

    def waited_ms(self, until_ms: int) -> int:
        """How long the caller waited, or has waited by ``until_ms``."""
        return max(0, (self.connected_ms or self.ended_ms or until_ms) - self.since_ms)

    def talked_ms(self, until_ms: int) -> int | None:
        """How long the caller was in the conference, or has been; None: never."""
        return None if self.connected_ms is None else max(0, (self.ended_ms or until_ms) - self.connected_ms)

    @property
    def outcome(self) -> str:
        """How it came out: the reason of its end, or the state that it is in."""
        return self.end or self.row.state.value

    def as_dict(self, until_ms: int) -> dict[str, Any]:
        """As it stands in JSON."""
        return {
            "conference": self.conference, "stay": self.stay, "since_ms": self.since_ms, "follows": self.follows,
            "registered_at_entry": list(self.registered), "attempts": self.attempts, "failures": self.failures,
            "node_id": self.node_id, "connected_ms": self.connected_ms, "ended_ms": self.ended_ms,
            "outcome": self.outcome, "waited_ms": self.waited_ms(until_ms), "talked_ms": self.talked_ms(until_ms),
            "waits": self.waits,
        }  # fmt: skip


class Story:
    """One call, over all its stays and conferences."""

    def __init__(self, call_id: str, *, keep: bool = True) -> None:
        """``keep``: its happenings; without them it says how it came out, and no more."""
        self.call_id = call_id
        self._keep = keep
        self.gateway_id = call_id.split("/", 1)[0]
        self.caller = "number not recorded"
        self.happenings: list[Happening] = []
        self.stays: list[Stay] = []
        self.missing: list[str] = []
        self._waiting_ms = 0
        self._waiting: tuple[str, str | None] | None = None

    @property
    def conference(self) -> str | None:
        """The conference of its present stay."""
        return self.stays[-1].conference if self.stays else None

    @property
    def last(self) -> StayRow:
        """Its last row."""
        return self.stays[-1].row

    def take(self, happening: Happening) -> None:
        """Take a happening of this call, or of the registrations of the conference that it is at."""
        if self._keep:
            self.happenings.append(happening)
        row = happening.stay
        if row is None or happening.what is What.NOTICED:
            return
        if row.caller is not None:
            self.caller = caller_of(row)
        stay = self._stay(happening, row)
        stay.row = row
        match happening.what:
            case What.INSTRUCTED:
                stay.attempts += 1
            case What.CONNECTED:
                self._connected(stay, happening, row)
            case What.FAILED | What.NO_OUTCOME:
                self._failed(stay, happening)
            case What.BACK:
                stay.end = stay.ended_ms = None
                if row.state is StayState.CONNECTED:
                    self._connected(stay, happening, row)
            case What.LEFT | What.GONE | What.LAPSED:
                stay.ended_ms = happening.at_ms
                stay.end = str(happening.details.get("reason", happening.what.value))

    def _stay(self, happening: Happening, row: StayRow) -> Stay:
        for stay in reversed(self.stays):
            if (stay.conference, stay.stay) == (happening.conference, row.stay):
                return stay
        nodes = tuple(dict.fromkeys(registration.node_id for registration in happening.known))
        stay = Stay(happening.conference, row.stay, row.since_ms, row, registered=nodes)
        stay.follows = happening.details.get("after")
        self.stays.append(stay)
        if happening.what is not What.PARKED:
            self.missing.append(
                f"how stay {row.stay} for {happening.conference} began: the first that is known of it is"
                f" {happening.what.value!r} (ask for an earlier time with --from)"
            )
            stay.complete = False
            stay.connected_ms = row.connected_ms or None
            stay.node_id = node_of(row) if row.connected_ms else None
        return stay

    @staticmethod
    def _connected(stay: Stay, happening: Happening, row: StayRow) -> None:
        stay.connected_ms = stay.connected_ms or happening.at_ms
        stay.node_id = node_of(row)

    @staticmethod
    def _failed(stay: Stay, happening: Happening) -> None:
        reason = happening.details.get("reason", happening.what.value)
        sip = happening.details.get("sip_code")
        stay.failures.append(f"{reason} (SIP {sip})" if sip else str(reason))

    # --- what it waits for ------------------------------------------------------------------------------------------

    def look(self, desk: DeskState | None, now_ms: int) -> None:
        """Count the time since the last look for what the call was waiting for then; ``desk``: as it is now."""
        if self._waiting is not None and self.stays:
            key, what = self._waiting
            if what is not None:
                waits = next(stay.waits for stay in reversed(self.stays) if f"{stay.conference}/{stay.stay}" == key)
                waits[what] = waits.get(what, 0) + max(0, now_ms - self._waiting_ms)
        self._waiting_ms = now_ms
        row = desk.stays.get(self.call_id) if desk is not None else None
        if desk is None or row is None or not self.stays or self.conference != desk.conference:
            self._waiting = None
        else:
            self._waiting = (f"{desk.conference}/{row.stay}", waits_for(row, desk))

    def close(self, until_ms: int) -> None:
        """Say what is missing once all was taken; ``until_ms``: the end of what was read."""
        if not self.stays:
            return
        self.look(None, until_ms)
        row = self.last
        if row.state in ACTIVE and row.until_ms < until_ms:
            self.missing.append(f"its end: its lease ran out at {shown(row.until_ms)}, and nothing was decided since")
        if row.state is StayState.LAPSED:
            self.missing.append("its end: the gateway was silent, so the call was written off")

    def as_dict(self, until_ms: int) -> dict[str, Any]:
        """As it stands in JSON."""
        return {
            "call_id": self.call_id,
            "gateway_id": self.gateway_id,
            "caller": self.caller,
            "stays": [stay.as_dict(until_ms) for stay in self.stays],
            "happenings": [happening.as_dict() for happening in self.happenings],
            "missing": self.missing,
        }


def waits_for(row: StayRow, desk: DeskState) -> str | None:
    """What a call waits for; None: it doesn't wait."""
    if row.state is StayState.DIALING:
        return DIALED
    if row.state is not StayState.PARKED:
        return None
    if row.held_ms:
        return HELD
    if not desk.live():
        return NOT_REGISTERED
    return PAUSED if row.retry_ms else BEHIND
