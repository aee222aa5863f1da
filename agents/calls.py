"""One call of a gateway, and the records that say something about it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from agents.messages import After, Failure
from callyard.numbers import shown
from callyard.records import (
    CallAlive,
    CallerConnected,
    CallerForm,
    CallerLeft,
    CallerParked,
    CallState,
    DialFailed,
    DialStarted,
    FailureReason,
    Instruction,
    LeftReason,
)  # fmt: skip


class Phase(IntEnum):
    """What a call does at its mark, in the order in which that happens."""

    ARRIVING = 0
    """Known, but neither seen in the lot nor dialled: on its way into it."""
    DIALING = 1
    """Its mark is being carried out: it is dialled, or told something."""
    CONNECTED = 2
    PARKED = 3


_STATES = {
    Phase.PARKED: CallState.PARKED,
    Phase.DIALING: CallState.DIALING,
    Phase.CONNECTED: CallState.CONNECTED,
}


@dataclass(frozen=True)
class Call:
    """One live call."""

    uniqueid: str
    channel: str
    conference: str
    stay: int
    mark: int
    """The last attempt of this stay that was carried out; 0: none."""
    phase: Phase
    failure: Failure | None = None
    """How attempt ``mark`` failed, once the call is parked again."""
    caller: str = ""
    parked_at_ms: int | None = None
    asked: int = 0
    """The newest attempt of this stay for which a redirect was written; never written again, whatever became of it."""
    unsure: bool = False
    """Whether attempt ``asked`` was done is unknown: the next snapshot tells."""
    missed: bool = False
    """The last snapshot didn't list it."""
    after: After | None = None
    """How the talk ended that this stay follows."""
    again: bool = False
    """Asked for another number, since it pressed ``*``: not to be dialled in this stay, unless it is parked again."""
    ending: LeftReason | None = None
    """The stay is as good as over: the caller is being told why, then hung up."""

    @property
    def place(self) -> tuple[int, int, Phase]:
        """Where it is on its road; see `agents.mirror`."""
        return self.stay, self.mark, self.phase


class Reports:
    """Makes one gateway's records."""

    def __init__(self, gateway_id: str, form: CallerForm, key: str = "") -> None:
        self.gateway_id = gateway_id
        self._form = form
        self._key = key

    def call_id(self, uniqueid: str) -> str:
        """The call id of a channel's uniqueid."""
        return f"{self.gateway_id}/{uniqueid}"

    def uniqueid(self, call_id: str) -> str:
        """The channel's uniqueid of a call id of this gateway."""
        return call_id.removeprefix(f"{self.gateway_id}/")

    def parked(self, call: Call) -> CallerParked:
        """Its stay began."""
        caller, form = shown(call.caller, self._form, self._key)
        return CallerParked(
            **self._about(call), caller=caller, caller_form=form, parked_at_ms=call.parked_at_ms,
            after=call.after.talk if call.after else None,
        )  # fmt: skip

    def alive(self, call: Call) -> CallAlive:
        """Its renewal."""
        caller, form = shown(call.caller, self._form, self._key)
        return CallAlive(
            **self._about(call), caller=caller, caller_form=form, state=_STATES[call.phase], attempt=call.mark,
            after=call.after.talk if call.after else None,
        )  # fmt: skip

    def started(self, call: Call) -> DialStarted:
        """Its mark is being dialled."""
        return DialStarted(**self._about(call), attempt=call.mark)

    def connected(self, call: Call) -> CallerConnected:
        """Its mark was answered."""
        return CallerConnected(**self._about(call), attempt=call.mark)

    def failed(self, call: Call, attempt: int, failure: Failure | None) -> DialFailed:
        """This attempt came to nothing, and the call is in the lot."""
        why = failure or Failure(FailureReason.OTHER)
        return DialFailed(
            **self._about(call),
            attempt=attempt,
            reason=why.reason,
            hangup_cause=why.hangup_cause,
            sip_code=why.sip_code,
        )

    def left(self, call: Call, reason: LeftReason, cause: int | None = None) -> CallerLeft:
        """Its stay is over."""
        return CallerLeft(**self._about(call), reason=reason, hangup_cause=cause)

    def refused(self, instruction: Instruction, reason: FailureReason) -> DialFailed:
        """An instruction that isn't carried out, of a call that is still there."""
        return DialFailed(**self._about(instruction), attempt=instruction.attempt, reason=reason)

    def ended(self, instruction: Instruction, reason: LeftReason) -> CallerLeft:
        """The stay of which an instruction speaks is over."""
        return CallerLeft(**self._about(instruction), reason=reason)

    def _about(self, call: Call | Instruction) -> dict[str, Any]:
        return {
            "sender": f"agent:{self.gateway_id}",
            "conference": call.conference,
            "gateway_id": self.gateway_id,
            "call_id": self.call_id(call.uniqueid) if isinstance(call, Call) else call.call_id,
            "stay": call.stay,
        }
