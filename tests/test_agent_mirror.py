"""The mirror, each case by itself; anything in any order is in `test_agent_mirror_machine`."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agents.calls import Phase
from agents.messages import (
    After,
    Channel,
    ChannelState,
    DialBegan,
    DialEnded,
    Failure,
    HungUp,
    Marks,
    Parked,
    Starred,
)
from agents.mirror import Mirror, Redirect, Refusal, Refused, Snapshot
from callyard.records import (
    AfterTalk,
    CallAlive,
    CallerForm,
    CallerLeft,
    CallerParked,
    CallRecord,
    CallState,
    DialFailed,
    DialInstruction,
    FailureReason,
    LeftReason,
)
from tests.test_agent_inbox import instruction

TOLD = Failure(FailureReason.TOLD)
ENDED = After(AfterTalk.ENDED, 16)
NOT_FOUND = Failure(FailureReason.NOT_FOUND, 1, 404)
WAITING = Marks("49123", 1, ChannelState.PARKED)


def dialing(attempt: int = 1) -> Marks:
    return replace(WAITING, state=ChannelState.DIALING, mark=attempt)


def failed(attempt: int = 1) -> Marks:
    return replace(WAITING, mark=attempt, failure=NOT_FOUND)


def parked(marks: Marks = WAITING) -> Parked:
    return Parked("1.0", "PJSIP/t-1", marks, "+4930123456", 2)


def listed(marks: Marks, *, bridged: bool = False) -> Channel:
    return Channel("1.0", "PJSIP/t-1", marks, bridged, "+4930123456")


def nothing_listed() -> Snapshot:
    return Snapshot({}, ())


def kinds(records: list[CallRecord]) -> list[str]:
    return [record.type for record in records]


@pytest.fixture
def mirror() -> Mirror:
    return Mirror("gw-1")


def test_a_call_from_parking_to_its_end(mirror: Mirror) -> None:
    assert mirror.apply(parked(), now_ms=10_000) == [
        CallerParked(
            sender="agent:gw-1", conference="49123", gateway_id="gw-1", call_id="gw-1/1.0", stay=1,
            caller="+493012****", caller_form=CallerForm.MASKED, parked_at_ms=8_000,
        )
    ]  # fmt: skip
    assert kinds(mirror.apply(DialBegan("1.0", "PJSIP/t-1", dialing()))) == ["dial-started"]
    assert kinds(mirror.apply(DialEnded("1.0", "PJSIP/t-1", dialing(), answered=True))) == ["caller-connected"]
    [left] = mirror.apply(HungUp("1.0", 16, None))
    assert isinstance(left, CallerLeft)
    assert (left.reason, left.hangup_cause) == (LeftReason.CONFERENCE_LEFT, 16)
    assert mirror.calls == {}


def test_a_failed_dial_is_told_when_the_call_is_really_parked_again(mirror: Mirror) -> None:
    mirror.apply(parked())
    mirror.apply(DialBegan("1.0", "PJSIP/t-1", dialing()))
    assert mirror.apply(DialEnded("1.0", "PJSIP/t-1", dialing(), answered=False)) == []
    [record] = mirror.apply(parked(failed()))
    assert isinstance(record, DialFailed)
    assert (record.attempt, record.reason, record.hangup_cause, record.sip_code) == (1, FailureReason.NOT_FOUND, 1, 404)


def test_a_new_number_ends_the_old_stay_and_begins_another(mirror: Mirror) -> None:
    mirror.apply(parked())
    left, begun = mirror.apply(parked(Marks("49124", 2, ChannelState.PARKED)))
    assert isinstance(left, CallerLeft)
    assert (left.conference, left.stay, left.reason) == ("49123", 1, LeftReason.NEW_NUMBER)
    assert isinstance(begun, CallerParked)
    assert (begun.conference, begun.stay) == ("49124", 2)


def test_a_talk_that_the_node_ended_is_followed_by_a_stay(mirror: Mirror) -> None:
    mirror.apply(parked())
    mirror.apply(DialEnded("1.0", "PJSIP/t-1", dialing(), answered=True))
    left, begun = mirror.apply(parked(Marks("49123", 2, ChannelState.PARKED, after=After(AfterTalk.LOST, 44))))
    assert isinstance(left, CallerLeft)
    assert (left.stay, left.reason, left.hangup_cause) == (1, LeftReason.CONFERENCE_LEFT, 44)
    assert isinstance(begun, CallerParked)
    assert (begun.stay, begun.after) == (2, AfterTalk.LOST)
    alive = mirror.alive("1.0")
    assert alive is not None
    assert alive.after is AfterTalk.LOST, "whoever missed the beginning is told so"


@pytest.mark.parametrize(("state", "reason"), [
    (ChannelState.OVER, LeftReason.TIMED_OUT),
    (ChannelState.GIVEN_UP, LeftReason.GIVEN_UP),
    (ChannelState.REMOVED, LeftReason.REMOVED),
])  # fmt: skip
@pytest.mark.parametrize("listed_before", [True, False])
def test_who_was_told_the_end_left_for_that_reason(
    mirror: Mirror, state: ChannelState, reason: LeftReason, listed_before: bool
) -> None:
    mirror.apply(parked())
    ending = replace(WAITING, state=state, mark=1)
    if listed_before:
        mirror.reconcile(Snapshot({}, (listed(ending),)), renewed=False)
        assert isinstance(mirror.judge(instruction(2)), Refused), "too late"
    [left] = mirror.apply(HungUp("1.0", 16, ending))
    assert isinstance(left, CallerLeft)
    assert left.reason is reason


def test_the_marks_of_another_stay_do_not_say_why_this_one_ended(mirror: Mirror) -> None:
    mirror.apply(parked())
    [left] = mirror.apply(HungUp("1.0", 16, Marks("49123", 2, ChannelState.OVER)))
    assert isinstance(left, CallerLeft)
    assert left.reason is LeftReason.HANGUP


def test_who_is_told_something_is_busy_and_then_waits_again(mirror: Mirror) -> None:
    mirror.apply(parked())
    mirror.asked(instruction(1))
    mirror.reconcile(Snapshot({}, (listed(replace(WAITING, state=ChannelState.TELLING, mark=1)),)), renewed=False)
    assert refusal(mirror, instruction(2))[0] is Refusal.BUSY
    [record] = mirror.apply(parked(replace(WAITING, mark=1, failure=TOLD)))
    assert isinstance(record, DialFailed)
    assert (record.attempt, record.reason) == (1, FailureReason.TOLD)
    assert mirror.judge(instruction(2)) == Redirect("PJSIP/t-1")


def test_what_comes_twice_or_late_says_nothing(mirror: Mirror) -> None:
    mirror.apply(parked())
    assert mirror.apply(parked()) == []
    mirror.apply(DialBegan("1.0", "PJSIP/t-1", dialing(2)))
    for late in (parked(), DialBegan("1.0", "PJSIP/t-1", dialing(1)), parked(failed(1)), HungUp("9.9", 16, None)):
        assert mirror.apply(late) == []
    assert mirror.calls["1.0"].phase is Phase.DIALING


def test_steps_whose_events_were_lost_are_told_all_the_same(mirror: Mirror) -> None:
    mirror.apply(parked())
    assert kinds(mirror.apply(DialEnded("1.0", "PJSIP/t-1", dialing(2), answered=True))) == [
        "dial-started",
        "caller-connected",
    ]


def test_a_dial_of_somebody_elses_before_any_redirect_is_nothing(mirror: Mirror) -> None:
    mirror.apply(parked())
    assert mirror.apply(DialBegan("1.0", "PJSIP/t-1", dialing(0))) == []


@pytest.mark.parametrize(
    ("marks", "in_lot", "bridged", "told"),
    [
        (WAITING, True, True, ["caller-parked"]),
        (failed(2), True, True, ["caller-parked", "dial-failed"]),
        (dialing(2), False, False, ["call-alive", "dial-started"]),
        (dialing(2), False, True, ["call-alive", "dial-started", "caller-connected"]),
        (replace(dialing(2), state=ChannelState.CONNECTED), False, True,
         ["call-alive", "dial-started", "caller-connected"]),
        (WAITING, False, False, []),
        (replace(WAITING, state=ChannelState.ASKING), False, False, []),
        (replace(WAITING, state=ChannelState.FULL), False, False, []),
    ],
)  # fmt: skip
def test_a_mirror_that_begins_anew_tells_what_the_channels_say(
    mirror: Mirror, marks: Marks, in_lot: bool, bridged: bool, told: list[str]
) -> None:
    entry = listed(marks, bridged=bridged)
    snapshot = Snapshot({"1.0": parked(marks)} if in_lot else {}, (entry,))
    assert kinds(mirror.reconcile(snapshot, renewed=True)) == told
    assert kinds(mirror.announce()) == told
    assert mirror.reconcile(snapshot, renewed=False) == []


def test_an_arriving_call_is_announced_when_it_is_parked(mirror: Mirror) -> None:
    mirror.reconcile(Snapshot({}, (listed(WAITING),)), renewed=True)
    assert mirror.alive("1.0") is None
    assert kinds(mirror.apply(parked())) == ["caller-parked"]


def test_an_older_snapshot_undoes_nothing(mirror: Mirror) -> None:
    mirror.apply(parked())
    mirror.apply(DialEnded("1.0", "PJSIP/t-1", dialing(1), answered=True))
    assert mirror.reconcile(Snapshot({"1.0": parked()}, (listed(WAITING),)), renewed=False) == []
    assert mirror.calls["1.0"].phase is Phase.CONNECTED


def test_a_call_absent_from_one_snapshot_may_still_say_how_it_ended(mirror: Mirror) -> None:
    mirror.apply(parked())
    assert mirror.reconcile(nothing_listed(), renewed=False) == []
    [left] = mirror.apply(HungUp("1.0", 16, None))
    assert isinstance(left, CallerLeft)
    assert left.reason is LeftReason.HANGUP


def test_a_call_absent_from_two_snapshots_or_the_first_of_a_session_is_gone(mirror: Mirror) -> None:
    mirror.apply(parked())
    mirror.reconcile(nothing_listed(), renewed=False)
    [twice] = mirror.reconcile(nothing_listed(), renewed=False)
    mirror.apply(parked())
    [once] = mirror.reconcile(nothing_listed(), renewed=True)
    assert isinstance(twice, CallerLeft)
    assert twice.reason is LeftReason.GONE
    assert once == twice


def test_the_longest_wait_is_over(mirror: Mirror) -> None:
    mirror.apply(parked())
    mirror.reconcile(Snapshot({}, (listed(replace(WAITING, state=ChannelState.OVER)),)), renewed=False)
    verdict = mirror.judge(instruction(1))
    assert isinstance(verdict, Refused)
    assert verdict.refusal is Refusal.NOT_PARKED
    [left] = mirror.apply(HungUp("1.0", 16, None))
    assert isinstance(left, CallerLeft)
    assert left.reason is LeftReason.TIMED_OUT


# --- instructions


def refusal(mirror: Mirror, wanted: DialInstruction) -> tuple[Refusal, list[str]]:
    verdict = mirror.judge(wanted)
    assert isinstance(verdict, Refused)
    return verdict.refusal, kinds(list(verdict.records))


def test_a_parked_call_is_redirected_once_for_each_attempt(mirror: Mirror) -> None:
    mirror.apply(parked())
    assert mirror.judge(instruction(1)) == Redirect("PJSIP/t-1")
    mirror.asked(instruction(1))
    assert refusal(mirror, instruction(1)) == (Refusal.ALREADY_APPLIED, [])
    mirror.apply(DialBegan("1.0", "PJSIP/t-1", dialing()))
    assert refusal(mirror, instruction(1)) == (Refusal.ALREADY_APPLIED, ["call-alive", "dial-started"])
    mirror.apply(parked(failed()))
    assert refusal(mirror, instruction(1)) == (Refusal.ALREADY_APPLIED, ["caller-parked", "dial-failed"])
    assert mirror.judge(instruction(2)) == Redirect("PJSIP/t-1")


def test_an_attempt_whose_redirect_was_dropped_is_followed_by_the_next(mirror: Mirror) -> None:
    mirror.apply(parked())
    mirror.asked(instruction(1))
    assert mirror.judge(instruction(2)) == Redirect("PJSIP/t-1")


def test_an_attempt_that_was_asked_for_is_not_asked_for_again_because_an_older_one_is_seen_late(mirror: Mirror) -> None:
    mirror.apply(parked())
    mirror.asked(instruction(1))
    mirror.asked(instruction(2))
    mirror.apply(DialBegan("1.0", "PJSIP/t-1", dialing(1)))
    mirror.apply(parked(failed(1)))
    assert refusal(mirror, instruction(2)) == (Refusal.ALREADY_APPLIED, [])


def test_a_call_that_is_gone_is_told_as_left(mirror: Mirror) -> None:
    verdict = mirror.judge(instruction(1))
    assert isinstance(verdict, Refused)
    [left] = verdict.records
    assert isinstance(left, CallerLeft)
    assert (verdict.refusal, left.reason, left.call_id) == (Refusal.GONE, LeftReason.GONE, "gw-1/1.0")


def test_an_instruction_for_a_stay_that_is_over_ends_it_there(mirror: Mirror) -> None:
    mirror.apply(parked(Marks("49124", 2, ChannelState.PARKED)))
    verdict = mirror.judge(instruction(1))
    assert isinstance(verdict, Refused)
    [left] = verdict.records
    assert isinstance(left, CallerLeft)
    assert (verdict.refusal, left.reason) == (Refusal.OTHER_STAY, LeftReason.NEW_NUMBER)
    assert (left.conference, left.stay) == ("49123", 1)


def test_an_instruction_for_a_stay_not_seen_yet_fails_so_that_the_next_comes(mirror: Mirror) -> None:
    mirror.apply(parked())
    assert refusal(mirror, instruction(1, stay=2)) == (Refusal.NOT_PARKED, ["dial-failed"])


def test_a_call_that_dials_or_talks_is_left_alone_and_the_desk_is_told(mirror: Mirror) -> None:
    mirror.apply(parked())
    mirror.apply(DialBegan("1.0", "PJSIP/t-1", dialing()))
    assert refusal(mirror, instruction(2)) == (Refusal.BUSY, ["call-alive", "dial-started"])
    mirror.apply(DialEnded("1.0", "PJSIP/t-1", dialing(), answered=True))
    assert refusal(mirror, instruction(2)) == (Refusal.BUSY, ["call-alive", "dial-started", "caller-connected"])


@pytest.mark.parametrize("renewed", [True, False])
def test_a_redirect_of_unknown_outcome_is_settled_by_the_channels_mark(mirror: Mirror, renewed: bool) -> None:
    mirror.apply(parked())
    mirror.asked(instruction(1))
    mirror.unsure(instruction(1))
    waiting = Snapshot({"1.0": parked()}, (listed(WAITING),))
    [record] = mirror.reconcile(waiting, renewed=renewed)
    assert isinstance(record, DialFailed)
    assert (record.attempt, record.reason) == (1, FailureReason.NOT_PARKED)
    assert mirror.reconcile(waiting, renewed=False) == []
    assert refusal(mirror, instruction(1)) == (Refusal.ALREADY_APPLIED, [])

    mirror.asked(instruction(2))
    mirror.unsure(instruction(2))
    done = Snapshot({}, (listed(dialing(2)),))
    assert kinds(mirror.reconcile(done, renewed=renewed)) == ["dial-started"]


def test_a_redirect_refused_because_the_channel_is_gone_needs_one_snapshot_only(mirror: Mirror) -> None:
    mirror.apply(parked())
    mirror.asked(instruction(1))
    mirror.unsure(instruction(1))
    assert kinds(mirror.reconcile(nothing_listed(), renewed=False)) == ["caller-left"]
    mirror.unsure(instruction(1))


def test_renewals(mirror: Mirror) -> None:
    mirror.apply(parked())
    mirror.apply(DialBegan("1.0", "PJSIP/t-1", dialing(3)))
    alive = mirror.alive("1.0")
    assert isinstance(alive, CallAlive)
    assert (alive.state, alive.attempt, alive.caller) == (CallState.DIALING, 3, "+493012****")
    assert mirror.alive("2.0") is None


def starred(marks: Marks = WAITING) -> Starred:
    return Starred("1.0", "PJSIP/t-1", marks)


def test_who_waits_may_ask_for_another_number_once() -> None:
    mirror = Mirror("gw-1")
    assert not mirror.may_ask_again(starred())
    mirror.apply(parked())
    assert mirror.apply(starred()) == []
    assert mirror.may_ask_again(starred())
    mirror.asking_again("1.0")
    assert not mirror.may_ask_again(starred())
    verdict = mirror.judge(instruction())
    assert isinstance(verdict, Refused)
    assert verdict.refusal is Refusal.NOT_PARKED


@pytest.mark.parametrize(
    "marks",
    [
        replace(WAITING, state=ChannelState.ASKING),
        replace(WAITING, state=ChannelState.OVER),
        replace(WAITING, stay=2),
        replace(WAITING, conference="49999"),
    ],
)
def test_star_of_who_does_not_wait_any_more_is_nothing(marks: Marks) -> None:
    mirror = Mirror("gw-1")
    mirror.apply(parked())
    assert not mirror.may_ask_again(starred(marks))


def test_star_of_who_is_dialled_or_about_to_be_is_nothing() -> None:
    mirror = Mirror("gw-1")
    mirror.apply(parked())
    mirror.asked(instruction())
    assert not mirror.may_ask_again(starred())
    mirror.apply(DialBegan("1.0", "PJSIP/t-1", dialing()))
    assert not mirror.may_ask_again(starred(dialing()))
    mirror.apply(parked(failed()))
    assert mirror.may_ask_again(starred(failed()))


def test_who_is_listed_as_waiting_again_is_dialled_again() -> None:
    mirror = Mirror("gw-1")
    mirror.apply(parked())
    mirror.asking_again("1.0")
    asking = replace(WAITING, state=ChannelState.ASKING)
    for _ in range(2):  # asked for a number as long as Asterisk lists it so, and alive
        assert mirror.reconcile(Snapshot({}, (listed(asking),)), renewed=False) == []
        assert isinstance(mirror.judge(instruction()), Refused)
    mirror.reconcile(Snapshot({"1.0": parked()}, (listed(WAITING, bridged=True),)), renewed=False)
    assert isinstance(mirror.judge(instruction()), Redirect)


def test_the_new_number_ends_the_stay_before() -> None:
    mirror = Mirror("gw-1")
    mirror.apply(parked())
    mirror.asking_again("1.0")
    records = mirror.apply(parked(replace(WAITING, conference="49999", stay=2)))
    assert kinds(records) == ["caller-left", "caller-parked"]
    assert isinstance(records[0], CallerLeft)
    assert records[0].reason is LeftReason.NEW_NUMBER
    assert mirror.may_ask_again(starred(replace(WAITING, conference="49999", stay=2)))
