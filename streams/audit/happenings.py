"""What happened, one thing at a time: journal entries told as lines about calls, registrations and instructions. Pure.

An entry holds whole rows; what happened is how they differ from those before. `Telling` folds the entries and says for
each what became of whom, so that calls, conferences, nodes and gateways are told from one source, each by a choice of
`Happening`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from callyard.records import CallerForm, DialInstruction, FailureReason, Instruction, JournalEntry, TellInstruction
from streams.audit.entries import Told
from streams.audit.fold import DeskState, Fold
from streams.rows import RegistrationRow, RegistrationState, StayRow, StayState


class What(str, Enum):
    """The kinds of happenings."""

    REGISTERED = "registered"
    REGISTRATION_RENEWED = "registration-renewed"
    REGISTRATION_BACK = "registration-back"
    """It had lapsed or was lost, and its node vouches for it again."""
    REGISTRATION_ENDED = "registration-ended"
    REGISTRATION_LOST = "registration-lost"
    REGISTRATION_LAPSED = "registration-lapsed"
    PARKED = "parked"
    """A stay begins."""
    RENEWED = "renewed"
    INSTRUCTED = "instructed"
    STARTED = "started"
    """The gateway has redirected the call, and dials (or tells the caller)."""
    CONNECTED = "connected"
    FAILED = "failed"
    TOLD = "told"
    """The caller was told that the conference can't be reached, and waits on."""
    NO_OUTCOME = "no-outcome"
    """Nothing was heard of an instruction until its deadline."""
    LEFT = "left"
    GONE = "gone"
    """The gateway no longer knew the call."""
    LAPSED = "lapsed"
    """The gateway was silent for a lease."""
    BACK = "back"
    """It had been written off, and its gateway says that it lives."""
    NOTICED = "noticed"
    """Something was said of the call that changed nothing (late, or said before)."""
    CHANGED = "changed"
    """Time alone changed its waiting: a pause or a hold is over."""


OF_REGISTRATIONS = frozenset(what for what in What if what.value.startswith("regist"))
ROUTINE = frozenset({What.RENEWED, What.REGISTRATION_RENEWED, What.NOTICED, What.CHANGED})
"""What a timeline leaves out unless it is asked for all."""


@dataclass(frozen=True, slots=True)
class Happening:
    """One thing that happened to one call or one registration."""

    what: What
    told: Told
    text: str
    registration: RegistrationRow | None = None
    before: StayRow | None = None
    stay: StayRow | None = None
    """The call's stay after it."""
    instruction: Instruction | None = None
    known: tuple[RegistrationRow, ...] = ()
    """The registrations that were live then, the newest first."""
    details: dict[str, Any] = field(default_factory=dict)
    """What the input said beside: hangup cause, SIP status, reason."""

    @property
    def at_ms(self) -> int:
        """The broker's time of what led to it."""
        return self.told.entry.broker_ms

    @property
    def conference(self) -> str:
        return self.told.entry.conference

    @property
    def node_id(self) -> str | None:
        if self.registration is not None:
            return self.registration.node_id
        if isinstance(self.instruction, DialInstruction):
            return self.instruction.node_id
        return node_of(self.stay) if self.stay is not None else None

    def as_dict(self) -> dict[str, Any]:
        """As it stands in JSON."""
        entry, stay = self.told.entry, self.stay
        about: dict[str, Any] = {
            "what": self.what.value, "at_ms": self.at_ms, "decided_ms": self.told.at_ms, "text": self.text,
            "conference": entry.conference, "partition": self.told.partition, "offset": self.told.offset,
            "version": entry.version, "node_id": self.node_id,
        }  # fmt: skip
        if stay is not None:
            about |= {"call_id": stay.call_id, "gateway_id": stay.gateway_id, "stay": stay.stay,
                      "state": stay.state.value, "attempt": stay.attempt, "caller": stay.caller}  # fmt: skip
        if self.instruction is not None:
            about["instruction"] = self.instruction.model_dump(mode="json", exclude_none=True)
        if self.what is What.PARKED:
            about["known"] = [{"node_id": r.node_id, "since_ms": r.since_ms, "sip_uri": r.sip_uri} for r in self.known]
        return {name: value for name, value in {**about, **self.details}.items() if value is not None}


def node_of(stay: StayRow) -> str | None:
    """The node of the present target; None where the desk doesn't know it."""
    return stay.target.split("|", 1)[0] if stay.target else None


class Telling:
    """Folds a journal's decisions and tells what happened in each."""

    def __init__(self, fold: Fold | None = None) -> None:
        self.fold = fold or Fold()

    def take(self, told: Told) -> list[Happening]:
        """What happened in this decision, the cause before its consequences."""
        entry = told.entry
        desk = self.fold.desk(entry.conference, told.partition)
        registrations, stays = dict(desk.registrations), dict(desk.stays)
        changes = self.fold.take(told)
        found: list[Happening] = []
        for registration in changes.registrations:
            found += self._registration(told, registrations.get(registration.key), registration)
        instructions = {instruction.call_id: instruction for instruction in entry.instructions}
        for stay in changes.stays:
            found += self._stay(told, desk, stays.get(stay.key), stay, instructions.get(stay.key))
        said = entry.said or {}
        subject = stays.get(str(said.get("call_id")))
        if subject is not None and subject.key not in {stay.key for stay in changes.stays}:
            text = f"{entry.event_type}: {entry.why}"
            found.append(Happening(What.NOTICED, told, text, before=subject, stay=subject, details=_details(entry)))
        return found

    def _registration(self, told: Told, old: RegistrationRow | None, new: RegistrationRow) -> Iterator[Happening]:
        what = _REGISTRATION[new.state]
        if what is What.REGISTERED and old is not None:
            what = What.REGISTRATION_BACK if old.state is not RegistrationState.LIVE else What.REGISTRATION_RENEWED
        elif what is What.REGISTERED and new.since_ms != told.entry.now_ms:
            # First heard of in the midst of its life.
            what = What.REGISTRATION_RENEWED if told.entry.outcome == "renewed" else What.REGISTRATION_BACK
        elif old is not None and old.state is new.state:
            return
        text = _cause(told.entry) if told.entry.outcome != "time" else f"node {new.node_id} was silent for a lease"
        yield Happening(what, told, text, registration=new, details=_details(told.entry))

    def _stay(
        self, told: Told, desk: DeskState, old: StayRow | None, new: StayRow, instruction: Instruction | None
    ) -> Iterator[Happening]:
        entry, known = told.entry, tuple(desk.live())
        own = entry.event_type not in _OTHERS and (entry.said or {}).get("call_id", new.call_id) == new.call_id
        what = self._what(entry, old, new, own)
        if what is not None:
            text = _cause(entry) if own else _by_time(what, entry)
            if what is What.STARTED and new.notice is not None:
                text = f"attempt {new.attempt} is carried out: the caller is being told"
            details = _details(entry) if own else {}
            yield Happening(what, told, text, before=old, stay=new, known=known, details=details)
        if instruction is not None:
            yield Happening(
                What.INSTRUCTED, told, instructed(instruction), before=old, stay=new, instruction=instruction,
                known=known, details={} if own else {"because": _because(entry, old)},
            )  # fmt: skip

    @staticmethod
    def _what(entry: JournalEntry, old: StayRow | None, new: StayRow, own: bool) -> What | None:
        if not own:
            return _by_others(entry, old, new)
        if entry.outcome == "left":
            return What.GONE if new.state is StayState.GONE else What.LEFT
        if entry.outcome == "dial-failed" and (entry.said or {}).get("reason") == FailureReason.TOLD.value:
            return What.TOLD
        return _BY_OUTCOME.get(entry.outcome, What.NOTICED)


def _by_others(entry: JournalEntry, old: StayRow | None, new: StayRow) -> What | None:
    """What a registration, or time, made of a call beside an instruction."""
    if new.state is StayState.LAPSED:
        return What.LAPSED
    if old is None or entry.event_type != "deadline-passed":
        return None
    if old.state is StayState.DIALING and new.failures > old.failures:
        return What.NO_OUTCOME
    return What.CHANGED if (old.retry_ms, old.held_ms) != (new.retry_ms, new.held_ms) else None


_OTHERS = frozenset({"conference-registered", "conference-unregistered", "deadline-passed"})
_REGISTRATION = {
    RegistrationState.LIVE: What.REGISTERED,
    RegistrationState.ENDED: What.REGISTRATION_ENDED,
    RegistrationState.LOST: What.REGISTRATION_LOST,
    RegistrationState.LAPSED: What.REGISTRATION_LAPSED,
}
_BY_OUTCOME = {
    "parked": What.PARKED,
    "adopted": What.BACK,
    "revived": What.BACK,
    "renewed": What.RENEWED,
    "dialing": What.STARTED,
    "connected": What.CONNECTED,
    "dial-failed": What.FAILED,
}


def _by_time(what: What, entry: JournalEntry) -> str:
    if what is What.LAPSED:
        return "nothing was heard of the call for a lease"
    if what is What.NO_OUTCOME:
        return "nothing was heard of the instruction until its deadline"
    return f"time: {entry.why}"


_CONSEQUENCE = re.compile(r"; (the caller is|\d+ callers are) (told: |sent to node )")


def _cause(entry: JournalEntry) -> str:
    """The reason without what follows from it: instructions are told on their own."""
    return _CONSEQUENCE.split(entry.why, maxsplit=1)[0]


def instructed(instruction: Instruction) -> str:
    """An instruction in words."""
    if isinstance(instruction, TellInstruction):
        return f"attempt {instruction.attempt}: tell the caller ({instruction.notice.value})"
    return f"attempt {instruction.attempt}: dial {instruction.sip_uri} at node {instruction.node_id}"


def _because(entry: JournalEntry, old: StayRow | None) -> str:
    """Why an instruction was issued that nothing its gateway said led to."""
    if entry.event_type != "deadline-passed" or old is None:
        return _cause(entry)
    if old.state is StayState.DIALING:
        return "nothing was heard of the last one until its deadline"
    if old.held_ms:
        return "it was waited long enough to know whether the conference goes on"
    return "the pause after the last failure is over" if old.retry_ms else _cause(entry)


_KEPT = ("reason", "hangup_cause", "sip_code", "after", "parked_at_ms", "attempt")


def _details(entry: JournalEntry) -> dict[str, Any]:
    said = entry.said or {}
    return {name: said[name] for name in _KEPT if name in said}


def caller_of(stay: StayRow) -> str:
    """The caller as the records have them."""
    if stay.caller is None or stay.caller_form is CallerForm.NONE:
        return "number not recorded"
    return stay.caller
