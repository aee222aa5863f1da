"""The mirror of one gateway's calls: events and snapshots in, records to publish out. Pure: no IO, no clock.

The channel is the record; the mirror only repeats it. Each call has a place on one road,

    (stay, mark, phase)   with the phases   ARRIVING < DIALING < CONNECTED < PARKED   of one mark

where ``mark`` is the last attempt that was carried out: attempt 3 is dialled, perhaps connected, and if it came to
nothing the call is parked again with mark 3. A caller who follows the meeting after a talk is in a new stay. Whatever
is seen moves a call forward on that road or says nothing new. So what comes twice, or late (an event that Asterisk
wrote before a snapshot but sent after it), or both, can undo nothing.

Absence is the one thing without a place on the road. Asterisk writes a list in one piece between events, so a call
that the mirror knew and ``Status`` doesn't list is dead; but its ``Hangup`` may still be on its way and says more. So
within a session a call must be absent from two snapshots; from the first snapshot of a new session once is enough,
because the events in between are lost.

``ParkedCallGiveUp`` decides nothing: redirect and hangup cause it alike. Left is ``Hangup``; a redirect was consumed
when the channel carries its mark.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from agents.calls import Call, Phase, Reports
from agents.messages import (
    ENDINGS,
    Channel,
    ChannelState,
    DialBegan,
    DialEnded,
    Failure,
    HungUp,
    Marks,
    Message,
    Parked,
    Starred,
)  # fmt: skip
from callyard.records import (
    CallAlive,
    CallerForm,
    CallRecord,
    FailureReason,
    Instruction,
    LeftReason,
)  # fmt: skip


@dataclass(frozen=True)
class Snapshot:
    """What Asterisk listed: who is in the lot and, after that, all channels of ours."""

    parked: Mapping[str, Parked]
    channels: tuple[Channel, ...]


class Refusal(str, Enum):
    """Why an instruction isn't carried out; see `Mirror.judge`."""

    ALREADY_APPLIED = "already-applied"
    GONE = "gone"
    OTHER_STAY = "other-stay"
    NOT_PARKED = "not-parked"
    BUSY = "busy"


@dataclass(frozen=True)
class Redirect:
    """Carry it out: redirect this channel."""

    channel: str


@dataclass(frozen=True)
class Refused:
    """Don't; publish these records instead."""

    refusal: Refusal
    records: tuple[CallRecord, ...] = ()


Verdict = Redirect | Refused


class Mirror:
    """The calls of one gateway, by uniqueid."""

    def __init__(self, gateway_id: str, caller_number: CallerForm = CallerForm.MASKED, caller_key: str = "") -> None:
        self.calls: dict[str, Call] = {}
        self.reports = Reports(gateway_id, caller_number, caller_key)

    # --- what Asterisk says

    def apply(self, event: Message, now_ms: int | None = None) -> list[CallRecord]:
        """One live event. ``now_ms`` only dates the beginning of a wait, for people."""
        if isinstance(event, HungUp):
            return self._hung_up(event)
        if isinstance(event, Parked):
            return self._see(_parked(event, now_ms))
        if isinstance(event, Starred):
            # Says nothing of the call's place; `may_ask_again` is what it is for.
            return []
        if isinstance(event, DialEnded) and not event.answered:
            return []
        if not event.marks.mark:
            # Somebody's own Dial() before the call was ever redirected.
            return []
        phase = Phase.DIALING if isinstance(event, DialBegan) else Phase.CONNECTED
        return self._see(_channel(event.uniqueid, event.channel, event.marks, phase))

    def reconcile(self, snapshot: Snapshot, *, renewed: bool, now_ms: int | None = None) -> list[CallRecord]:
        """One snapshot; what it tells that events did not. ``renewed``: the first one of a session."""
        records: list[CallRecord] = []
        for entry in snapshot.channels:
            if entry.marks.state is ChannelState.ASKING or entry.marks.state is ChannelState.FULL:
                # Alive, but in no stay.
                self._confirm_again(entry)
                continue
            parked = snapshot.parked.get(entry.uniqueid)
            seen = replace(
                _channel(entry.uniqueid, entry.channel, entry.marks, _phase(entry, parked is not None)),
                caller=entry.caller,
                parked_at_ms=None if parked is None else _parked(parked, now_ms).parked_at_ms,
            )
            records += self._see(seen)
            records += self._settle(entry.uniqueid, ENDINGS.get(entry.marks.state))
        listed = {entry.uniqueid for entry in snapshot.channels}
        for call in [call for call in self.calls.values() if call.uniqueid not in listed]:
            if renewed or call.missed or call.unsure:
                del self.calls[call.uniqueid]
                records.append(self.reports.left(call, LeftReason.GONE))
            else:
                self.calls[call.uniqueid] = replace(call, missed=True)
        return records

    def _confirm_again(self, entry: Channel) -> None:
        call = self.calls.get(entry.uniqueid)
        if call is not None and call.stay == entry.marks.stay and call.phase is Phase.PARKED:
            self.calls[entry.uniqueid] = replace(call, again=True, missed=False)

    def _settle(self, uniqueid: str, ending: LeftReason | None) -> list[CallRecord]:
        # A redirect whose answer was lost: the mark tells whether it was done. It is never written again; the failure
        # lets the stream issue the next attempt at once instead of at the deadline.
        call = self.calls[uniqueid]
        # Not asked for a number, as this lists it: its redirect came to nothing, or is not consumed yet. Then the
        # dialplan refuses to dial who is being asked.
        self.calls[uniqueid] = replace(call, unsure=False, missed=False, again=False, ending=ending)
        if call.unsure and call.phase is Phase.PARKED and call.mark < call.asked:
            return [self.reports.failed(call, call.asked, Failure(FailureReason.NOT_PARKED))]
        return []

    def _see(self, seen: Call) -> list[CallRecord]:
        old = self.calls.get(seen.uniqueid)
        if old is None:
            self.calls[seen.uniqueid] = seen
            return self._announce(seen)
        same = (old.conference, old.stay) == (seen.conference, seen.stay)
        if seen.stay < old.stay or (same and seen.place <= old.place):
            return []
        new = replace(seen, caller=old.caller or seen.caller)
        if same:
            new = replace(
                new,
                asked=max(old.asked, seen.mark),
                unsure=old.unsure,
                parked_at_ms=old.parked_at_ms or seen.parked_at_ms,
            )
        self.calls[new.uniqueid] = new
        if same:
            return list(self._steps(old, new))
        return [self._left_for(old, new), *self._announce(new)]

    def _left_for(self, old: Call, new: Call) -> CallRecord:
        """The end of the stay before this one."""
        if new.after is not None and old.conference == new.conference:
            return self.reports.left(old, LeftReason.CONFERENCE_LEFT, new.after.hangup_cause)
        return self.reports.left(old, LeftReason.NEW_NUMBER)

    def _steps(self, old: Call, new: Call) -> Iterator[CallRecord]:
        # What lies between two places of one stay; steps whose events were lost are told as well.
        if old.phase is Phase.ARRIVING:
            # Nothing was said of it yet.
            yield from self._announce(new)
            return
        if new.mark > old.mark or new.phase is Phase.DIALING:
            yield self.reports.started(new)
        if new.phase is Phase.CONNECTED:
            yield self.reports.connected(new)
        if new.phase is Phase.PARKED and new.mark:
            yield self.reports.failed(new, new.mark, new.failure)

    def _hung_up(self, event: HungUp) -> list[CallRecord]:
        call = self.calls.pop(event.uniqueid, None)
        if call is None:
            return []
        marks = event.marks
        ending = call.ending
        if marks is not None and (marks.conference, marks.stay) == (call.conference, call.stay):
            ending = ENDINGS.get(marks.state, ending)
        if ending is not None:
            reason = ending
        else:
            reason = LeftReason.CONFERENCE_LEFT if call.phase is Phase.CONNECTED else LeftReason.HANGUP
        return [self.reports.left(call, reason, event.cause)]

    # --- what the desk is told anew

    def announce(self) -> list[CallRecord]:
        """Everything that is known, for whoever may have missed something. Repeating it changes nothing."""
        return [record for call in self.calls.values() for record in self._announce(call)]

    def alive(self, uniqueid: str) -> CallAlive | None:
        """The renewal of one call; None if it is over, or not yet in the lot."""
        call = self.calls.get(uniqueid)
        return None if call is None or call.phase is Phase.ARRIVING else self.reports.alive(call)

    def _announce(self, call: Call) -> list[CallRecord]:
        if call.phase is Phase.ARRIVING:
            return []
        if call.phase is Phase.PARKED:
            failed = [self.reports.failed(call, call.mark, call.failure)] if call.mark else []
            return [self.reports.parked(call), *failed]
        connected = [self.reports.connected(call)] if call.phase is Phase.CONNECTED else []
        return [self.reports.alive(call), self.reports.started(call), *connected]

    # --- what the desk asks for

    def judge(self, instruction: Instruction) -> Verdict:  # noqa: PLR0911 - one line for each case
        """Whether an instruction to this gateway is carried out, and what to publish where it is not.

        A refused caller is never lost, because the records tell the desk what is true instead: ``GONE`` and
        ``OTHER_STAY`` end that stay there; ``NOT_PARKED`` (on its way into the lot, or out of it) fails the attempt, so
        that the next one comes soon; ``BUSY`` (dialling or talking) and ``ALREADY_APPLIED`` repeat what the channel
        says. Where even that is lost, the instruction's deadline brings the next attempt.
        """
        call = self.calls.get(self.reports.uniqueid(instruction.call_id))
        if call is None:
            return Refused(Refusal.GONE, (self.reports.ended(instruction, LeftReason.GONE),))
        not_parked = Refused(Refusal.NOT_PARKED, (self.reports.refused(instruction, FailureReason.NOT_PARKED),))
        if instruction.stay > call.stay:
            # Told by another replica, whose events were ahead of ours.
            return not_parked
        if (call.conference, call.stay) != (instruction.conference, instruction.stay):
            return Refused(Refusal.OTHER_STAY, (self.reports.ended(instruction, LeftReason.NEW_NUMBER),))
        if instruction.attempt <= call.mark:
            return Refused(Refusal.ALREADY_APPLIED, tuple(self._announce(call)))
        if instruction.attempt <= call.asked:
            # Its redirect is under way; a second one of the same attempt would pull the call out of its own dial.
            return Refused(Refusal.ALREADY_APPLIED)
        if call.phase in (Phase.DIALING, Phase.CONNECTED):
            return Refused(Refusal.BUSY, tuple(self._announce(call)))
        if call.phase is Phase.ARRIVING or call.ending is not None or call.again:
            return not_parked
        return Redirect(call.channel)

    def asked(self, instruction: Instruction) -> None:
        """The redirect of this instruction, which `judge` allowed, was written: it never will be again."""
        uniqueid = self.reports.uniqueid(instruction.call_id)
        self.calls[uniqueid] = replace(self.calls[uniqueid], asked=instruction.attempt, unsure=False)

    def unsure(self, instruction: Instruction) -> None:
        """Asterisk refused that redirect, or its answer was lost: the next snapshot tells what is true."""
        uniqueid = self.reports.uniqueid(instruction.call_id)
        call = self.calls.get(uniqueid)
        if call is not None and (call.stay, call.asked) == (instruction.stay, instruction.attempt):
            self.calls[uniqueid] = replace(call, unsure=True)

    # --- what the caller asks for

    def may_ask_again(self, event: Starred) -> bool:
        """Whether who pressed ``*`` waits, and nothing is under way with it."""
        call = self.calls.get(event.uniqueid)
        if call is None or call.phase is not Phase.PARKED or call.ending is not None or call.again or call.unsure:
            return False
        same = (call.conference, call.stay) == (event.marks.conference, event.marks.stay)
        return same and event.marks.state is ChannelState.PARKED and call.asked <= call.mark

    def asking_again(self, uniqueid: str) -> None:
        """The redirect to the question for another number, which `may_ask_again` allowed, was written."""
        self.calls[uniqueid] = replace(self.calls[uniqueid], again=True)


_TOLD = frozenset({ChannelState.TELLING, ChannelState.GIVEN_UP, ChannelState.REMOVED})
"""An instruction to tell the caller something is being carried out."""


def _phase(entry: Channel, parked: bool) -> Phase:
    if entry.marks.mark and entry.marks.state is ChannelState.CONNECTED:
        return Phase.CONNECTED
    if entry.marks.mark and entry.marks.state in _TOLD:
        return Phase.DIALING
    if entry.marks.mark and entry.marks.state is ChannelState.DIALING:
        # Between the answer and the dialplan's mark of it, the bridge tells.
        return Phase.CONNECTED if entry.bridged else Phase.DIALING
    return Phase.PARKED if parked else Phase.ARRIVING


def _channel(uniqueid: str, channel: str, marks: Marks, phase: Phase) -> Call:
    return Call(
        uniqueid, channel, marks.conference, marks.stay, marks.mark, phase,
        failure=marks.failure if phase is Phase.PARKED else None, asked=marks.mark, after=marks.after,
    )  # fmt: skip


def _parked(event: Parked, now_ms: int | None) -> Call:
    seen = _channel(event.uniqueid, event.channel, event.marks, Phase.PARKED)
    since = None if now_ms is None else max(0, now_ms - event.seconds * 1000)
    return replace(seen, caller=event.caller, parked_at_ms=since)
