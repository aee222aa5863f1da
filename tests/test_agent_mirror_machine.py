"""The mirror of a gateway that does anything in any order, seen through late events."""

from __future__ import annotations

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agents.calls import Phase
from agents.messages import After, ChannelState, DialBegan, DialEnded, Failure, HungUp, Message
from agents.mirror import Mirror, Refused, Snapshot
from callyard.records import (
    AfterTalk,
    CallAlive,
    CallerConnected,
    CallerLeft,
    CallerParked,
    CallRecord,
    DialInstruction,
    DialStarted,
    FailureReason,
)
from tests.support.channel import UNDER_WAY, AsteriskCall
from tests.test_agent_inbox import instruction

TOLD = Failure(FailureReason.TOLD)
ENDED = After(AfterTalk.ENDED, 16)
NOT_FOUND = Failure(FailureReason.NOT_FOUND, 1, 404)


class GatewayMachine(RuleBasedStateMachine):
    """An Asterisk whose events wait in a queue while its lists jump it, as the real one's do; and its mirror.

    The queue holds events in order. A list tells the present and reaches the mirror before the events that wait. The
    end of a session drops what waits.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mirror = Mirror("gw-1")
        self.callers: dict[str, AsteriskCall] = {}
        self.events: deque[Message] = deque()
        self.told: list[CallRecord] = []
        self.redirects: dict[str, DialInstruction] = {}
        self.written: set[str] = set()
        self.places: dict[str, tuple[int, int, Phase]] = {}
        self.count = 0
        self.numbers: dict[tuple[str, int], str] = {}

    def pick(self, number: int) -> AsteriskCall | None:
        return list(self.callers.values())[number % len(self.callers)] if self.callers else None

    # What happens at the gateway.

    @rule()
    def a_caller_comes(self) -> None:
        self.count += 1
        caller = AsteriskCall(f"{self.count}.0")
        self.callers[caller.uniqueid] = caller
        self.parks(caller)

    def parks(self, caller: AsteriskCall) -> None:
        self.numbers[f"gw-1/{caller.uniqueid}", caller.stay] = caller.conference
        self.events.append(caller.parked)

    @rule(number=st.integers(0, 9), tells=st.booleans())
    def a_redirect_is_consumed(self, number: int, tells: bool) -> None:
        caller = self.pick(number)
        wanted = self.redirects.pop(caller.uniqueid, None) if caller else None
        if caller is None or wanted is None or caller.state is not ChannelState.PARKED:
            return
        if wanted.stay != caller.stay or wanted.attempt <= caller.mark:
            self.events.append(caller.parked)
        elif tells:
            caller.mark, caller.state, caller.failure = wanted.attempt, ChannelState.TELLING, None
        else:
            caller.mark, caller.state, caller.failure = wanted.attempt, ChannelState.DIALING, None
            self.events.append(DialBegan(caller.uniqueid, f"PJSIP/{caller.uniqueid}", caller.marks))

    @rule(number=st.integers(0, 9))
    def a_caller_has_been_told(self, number: int) -> None:
        caller = self.pick(number)
        if caller is not None and caller.state is ChannelState.TELLING:
            caller.state, caller.failure = ChannelState.PARKED, TOLD
            self.events.append(caller.parked)

    @rule(number=st.integers(0, 9))
    def a_node_ends_a_talk(self, number: int) -> None:
        caller = self.pick(number)
        if caller is not None and caller.state is ChannelState.CONNECTED:
            caller.stay, caller.mark, caller.state, caller.after = caller.stay + 1, 0, ChannelState.PARKED, ENDED
            self.parks(caller)

    @rule(number=st.integers(0, 9), answers=st.booleans())
    def a_dial_ends(self, number: int, answers: bool) -> None:
        caller = self.pick(number)
        if caller is None or caller.state is not ChannelState.DIALING:
            return
        self.events.append(DialEnded(caller.uniqueid, f"PJSIP/{caller.uniqueid}", caller.marks, answers))
        if answers:
            caller.state = ChannelState.CONNECTED
        else:
            caller.state, caller.failure = ChannelState.PARKED, NOT_FOUND
            self.events.append(caller.parked)

    @rule(number=st.integers(0, 9))
    def a_caller_enters_another_number(self, number: int) -> None:
        caller = self.pick(number)
        if caller is not None and caller.state is ChannelState.PARKED:
            caller.stay, caller.mark, caller.failure, caller.after = caller.stay + 1, 0, None, None
            caller.conference = str(int(caller.conference) + 1)
            self.parks(caller)

    @rule(number=st.integers(0, 9))
    def a_caller_hangs_up(self, number: int) -> None:
        caller = self.pick(number)
        if caller is not None:
            del self.callers[caller.uniqueid]
            self.events.append(HungUp(caller.uniqueid, 16, caller.marks))

    # What the agent sees.

    @rule(number=st.integers(1, 3))
    def events_arrive(self, number: int) -> None:
        for _ in range(min(number, len(self.events))):
            self.told += self.mirror.apply(self.events.popleft())

    @rule()
    def a_snapshot(self, renewed: bool = False) -> None:
        in_lot = {c.uniqueid: c.parked for c in self.callers.values() if c.state is ChannelState.PARKED}
        snapshot = Snapshot(in_lot, tuple(caller.entry for caller in self.callers.values()))
        self.told += self.mirror.reconcile(snapshot, renewed=renewed)

    @rule()
    def the_session_ends_and_another_begins(self) -> None:
        self.events.clear()
        for wanted in self.redirects.values():
            self.mirror.unsure(wanted)
        self.a_snapshot(renewed=True)

    @rule(rarely=st.integers(0, 4))
    def the_agent_starts_anew(self, rarely: int) -> None:
        if rarely:
            return
        self.mirror = Mirror("gw-1")
        # Who ended meanwhile is unknown to it: the desk learns that by the lease.
        self.told.clear()
        self.places.clear()
        self.written.clear()
        self.events.clear()
        self.redirects.clear()
        self.a_snapshot(renewed=True)

    # What the desk asks for.

    @rule(
        number=st.integers(0, 9),
        ahead=st.sampled_from([0, 0, 0, 0, -1, 1]),
        attempt=st.integers(1, 3),
        at_once=st.booleans(),
    )
    def an_instruction(self, number: int, ahead: int, attempt: int, at_once: bool) -> None:
        caller = self.pick(number)
        if caller is None:
            return
        stay = max(1, caller.stay + ahead)
        wanted = instruction(attempt, stay=stay, uniqueid=caller.uniqueid).model_copy(
            update={"conference": self.numbers.get((f"gw-1/{caller.uniqueid}", stay), "99999")}
        )
        verdict = self.mirror.judge(wanted)
        if isinstance(verdict, Refused):
            self.told += verdict.records
            return
        assert wanted.instruction_id not in self.written, "an attempt was redirected twice"
        self.written.add(wanted.instruction_id)
        self.mirror.asked(wanted)
        self.redirects.setdefault(caller.uniqueid, wanted)
        if at_once:
            self.a_redirect_is_consumed(number, tells=False)

    # What must hold.

    @invariant()
    def a_mirror_never_runs_ahead_of_its_channel(self) -> None:
        for call in self.mirror.calls.values():
            if call.uniqueid in self.callers:
                caller = self.callers[call.uniqueid]
                assert (call.stay, call.mark) <= (caller.stay, caller.mark)

    @invariant()
    def a_call_never_steps_back(self) -> None:
        for call in self.mirror.calls.values():
            assert call.place >= self.places.get(call.uniqueid, call.place)
        self.places = {call.uniqueid: call.place for call in self.mirror.calls.values()}

    @invariant()
    def nothing_is_told_that_never_was(self) -> None:
        for record in self.told:
            if isinstance(record, (DialStarted, CallerConnected)):
                assert record.attempt >= 1
            assert record.conference in ("99999", self.numbers.get((record.call_id, record.stay)))

    @precondition(lambda self: not self.events)
    @rule()
    def when_all_has_arrived_the_mirror_is_true(self) -> None:
        self.a_snapshot()
        self.a_snapshot()
        truth = {
            caller.uniqueid: (
                caller.stay,
                caller.mark,
                "dialing" if caller.state in UNDER_WAY else caller.state.value,
            )
            for caller in self.callers.values()
        }
        seen = {call.uniqueid: (call.stay, call.mark, call.phase.name.lower()) for call in self.mirror.calls.values()}
        assert seen == truth
        for (call_id, stay), record in {(told.call_id, told.stay): told for told in self.told}.items():
            caller = self.callers.get(call_id.removeprefix("gw-1/"))
            if (caller is None or caller.stay != stay) and (call_id, stay) in self.announced():
                assert isinstance(record, CallerLeft), "a stay that is over was not told as left"

    def announced(self) -> set[tuple[str, int]]:
        """The stays that the desk was told of as living."""
        return {(told.call_id, told.stay) for told in self.told if isinstance(told, (CallerParked, CallAlive))}


GatewayMachine.TestCase.settings = settings(max_examples=600, stateful_step_count=50, deadline=None)
test_anything_in_any_order = GatewayMachine.TestCase
