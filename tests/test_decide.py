"""What one desk decides, event by event: every transition that an operator could ask about."""

from __future__ import annotations

import dataclasses
from itertools import product

import pytest

from callyard.records import InputRecord
from streams.rows import RegistrationState, StayState
from streams.transitions import (
    CALL_EVENTS,
    REGISTRATION_EVENTS,
    REGISTRATIONS,
    STAYS,
    Known,
    registration_step,
    stay_step,
)
from tests.support.events import (
    alive,
    connected,
    failed,
    left,
    parked,
    registered,
    started,
    timer,
    unregistered,
)
from tests.support.story import POLICY, Story, dialled


def test_every_state_has_an_entry_for_every_event() -> None:
    for state, event in product([*Known, *StayState], CALL_EVENTS):
        stay_step(state, event)
    for registration, event in product([Known.NOTHING, *RegistrationState], REGISTRATION_EVENTS):
        registration_step(registration, event)
    assert set(STAYS) == {*Known, *StayState}
    assert set(REGISTRATIONS) == {Known.NOTHING, *RegistrationState}


def test_a_caller_who_waits_is_dialled_the_moment_the_conference_starts() -> None:
    story = Story()
    assert story(parked()).outcome == "parked"
    assert dialled(story(registered())) == [("1", 1, "node-1")]
    assert story(started()).outcome == "dialing"
    assert story(connected()).outcome == "connected"
    assert story(left(reason="conference-left")).outcome == "left"


def test_a_caller_who_comes_later_is_dialled_at_once() -> None:
    story = Story()
    story(registered())
    assert dialled(story(parked())) == [("1", 1, "node-1")]


def test_the_longest_waiting_is_dialled_first() -> None:
    story = Story()
    for call in ("3", "1", "2"):
        story(parked(call))
    assert dialled(story(registered())) == [("3", 1, "node-1"), ("1", 1, "node-1"), ("2", 1, "node-1")]


@pytest.mark.parametrize(
    "again", [registered(), parked(), alive(), started(), alive(state="dialing", attempt=1)], ids=lambda e: e.type
)
def test_a_repeated_event_dials_nobody_twice(again: InputRecord) -> None:
    story = Story()
    story(parked())
    story(registered())
    assert dialled(story(again)) == []
    assert story.stay() is StayState.DIALING


def test_unregistering_one_instance_leaves_the_other() -> None:
    story = Story()
    story(registered("old"))
    story(registered("new"))
    story(unregistered("old"))
    assert dialled(story(parked())) == [("1", 1, "node-1")]


def test_the_newest_registration_is_the_target_and_then_the_next() -> None:
    story = Story()
    story(registered("a", "node-1"))
    story(registered("b", "node-2"))
    story(registered("a", "node-1"))  # a renewal does not make it newer
    assert dialled(story(parked("1"))) == [("1", 1, "node-2")]
    story(unregistered("b", "node-2"))
    assert dialled(story(parked("2"))) == [("2", 1, "node-1")]


def test_an_ended_instance_never_comes_back_but_a_lost_one_does() -> None:
    story = Story()
    story(registered("a"))
    story(unregistered("a", reason="ended"))
    assert story(registered("a")).outcome == "stale"
    assert dialled(story(parked())) == []
    story(registered("b"))
    story(unregistered("b", reason="lost"))
    assert story(registered("b")).outcome == "revived"
    assert dialled(story(parked("2"))) == [("2", 1, "node-1")]


def test_the_end_of_an_instance_that_comes_before_its_beginning_counts() -> None:
    story = Story()
    story(parked())
    story(unregistered("a"))
    assert dialled(story(registered("a"))) == []


def test_a_lapsed_registration_is_no_target_until_it_is_renewed() -> None:
    story = Story()
    story(registered())
    assert dialled(story(parked("1"), after=POLICY.registration_lease_ms)) == []
    assert story(timer()).outcome == "time"
    assert story.desk.target(story.now) is None
    assert dialled(story(registered())) == [("1", 1, "node-1")]


def test_a_failed_dial_is_tried_again_after_its_backoff() -> None:
    story = Story()
    story(registered())
    story(parked())
    assert dialled(story(failed(attempt=1))) == []
    assert dialled(story(timer(), after=POLICY.backoff_ms - 100)) == []
    assert story(registered()).outcome == "renewed"
    assert dialled(story(timer(), after=200)) == [("1", 2, "node-1")]


def test_a_failed_dial_goes_to_another_registration_at_once() -> None:
    story = Story()
    story(registered("a", "node-1"))
    story(parked())
    story(failed(attempt=1))
    assert dialled(story(registered("b", "node-2"))) == [("1", 2, "node-2")]


def test_a_failed_dial_without_a_registration_waits() -> None:
    story = Story()
    story(registered())
    story(parked())
    story(unregistered())
    story(failed(attempt=1))
    assert dialled(story(timer(), after=5000)) == []
    assert story.stay() is StayState.PARKED
    assert dialled(story(registered("b"))) == [("1", 2, "node-1")]


def test_attempts_slow_down_but_never_end_beside_a_running_conference() -> None:
    story = Story()
    story(registered())
    story(parked())
    attempts = [1]
    for _ in range(POLICY.attempts + 3):
        story(failed(attempt=attempts[-1]))
        story(registered(), after=POLICY.backoff_max_ms)  # renewed meanwhile
        attempts += [attempt for _, attempt, _ in dialled(story(timer()))]
    assert attempts == list(range(1, POLICY.attempts + 5))


def test_an_instruction_without_an_outcome_is_issued_again() -> None:
    story = Story()
    story(registered())
    story(parked())
    story(registered(), after=POLICY.instruction_deadline_ms - 100)
    assert dialled(story(timer(), after=0)) == []
    assert dialled(story(timer(), after=200)) == [("1", 2, "node-1")]
    assert story(connected(attempt=1)).outcome == "connected"
    assert dialled(story(timer(), after=POLICY.instruction_deadline_ms)) == []


def test_a_new_stay_begins_anew() -> None:
    story = Story()
    story(registered())
    story(parked(stay=1))
    assert story(connected()).outcome == "connected"
    assert dialled(story(parked(stay=2))) == [("1", 1, "node-1")]
    assert story(connected(stay=1)).outcome == "stale"
    assert story(left(stay=1)).outcome == "stale"
    assert story.stay() is StayState.DIALING


@pytest.mark.parametrize("moment", [[], [started()], [started(), connected()], [failed()]], ids=len)
def test_who_hung_up_is_never_dialled_again(moment: list[InputRecord]) -> None:
    story = Story()
    story(registered())
    story(parked())
    for event in moment:
        story(event)
    story(left())
    for event in (parked(), alive(), failed(attempt=1), timer(), registered("b", "node-2")):
        assert dialled(story(event, after=20_000)) == []
    assert story.stay() is StayState.LEFT


def test_silence_lapses_a_call_and_a_word_revives_it() -> None:
    story = Story()
    story(parked())
    story(timer(), after=POLICY.call_lease_ms)
    assert story.stay() is StayState.LAPSED
    assert dialled(story(registered())) == []
    assert dialled(story(alive())) == [("1", 1, "node-1")]


def test_a_call_that_its_gateway_wrote_off_is_revived_by_it() -> None:
    story = Story()
    story(parked())
    story(left(reason="gone"))
    story(registered())
    assert story.stay() is StayState.GONE
    assert dialled(story(parked())) == [("1", 1, "node-1")]


def test_a_talking_caller_stays_connected_whatever_is_repeated() -> None:
    story = Story()
    story(parked())
    story(connected())
    refused = failed(reason="not-parked")
    for event in (parked(), started(), refused, connected(), alive(state="connected", attempt=1), timer()):
        story(event)
        assert story.stay() is StayState.CONNECTED, event


def test_a_talk_that_a_redirect_tore_apart_is_put_through_anew() -> None:
    story = Story()
    story(registered())
    story(parked())
    story(connected(attempt=1))
    assert story(failed(attempt=1, reason="other")).outcome == "dial-failed"
    assert story.stay() is StayState.PARKED
    assert story.until(story.now + POLICY.backoff_ms) == [("1", 2, "node-1")]


def test_what_is_said_of_an_older_attempt_changes_nothing() -> None:
    story = Story()
    story(registered())
    story(parked())
    story(failed(attempt=1))
    assert story.until(story.now + POLICY.backoff_ms) == [("1", 2, "node-1")]
    for late in (failed(attempt=1), started(attempt=1)):
        assert story(late).outcome == "stale"
        assert story.stay() is StayState.DIALING
    story(failed(attempt=2))
    before = story.desk.stays["gw-1/1"]
    assert story(failed(attempt=2)).outcome == "duplicate"
    after = story.desk.stays["gw-1/1"]
    assert (after.failures, after.retry_ms) == (before.failures, before.retry_ms), "a failure counts once"


def test_pauses_double_up_to_the_longest_and_another_node_begins_anew() -> None:
    story = Story()
    story(registered())
    story(parked())

    def pause_after(attempt: int) -> int:
        story(failed(attempt=attempt))
        return story.desk.stays["gw-1/1"].retry_ms - story.now

    pauses = []
    for attempt in range(1, 7):
        pauses.append(pause_after(attempt))
        story(registered())
        assert story.until(story.now + pauses[-1]) == [("1", attempt + 1, "node-1")]
    assert pauses == [1000, 2000, 4000, 8000, 15000, 15000]
    story(registered("b", "node-2"))
    assert pause_after(7) < 0, "a newer one is tried at once: there is no pause"
    assert story.desk.stays["gw-1/1"].state is StayState.DIALING
    assert pause_after(8) == 1000


def test_a_refusal_waits_the_longest_pause() -> None:
    story = Story()
    story(registered())
    story(parked())
    assert dialled(story(failed(reason="refused"))) == [("1", 2, "unreachable")], "trying on can't help: told at once"
    story(failed(attempt=2, reason="told"))
    assert story.desk.stays["gw-1/1"].retry_ms - story.now == POLICY.backoff_max_ms


def test_a_refusal_gives_the_next_registration_its_turn() -> None:
    story = Story()
    story(registered("works", "node-1"))
    story(registered("broken", "node-2"))
    assert dialled(story(parked())) == [("1", 1, "node-2")]
    story(failed(reason="refused"))
    assert story.until(story.now + POLICY.backoff_ms) == [("1", 2, "node-1")]


def test_a_newest_registration_that_never_works_gives_way_to_the_next() -> None:
    story = Story()
    story(registered("works", "node-1"))
    story(registered("broken", "node-2"))
    nodes = ["node-2"]
    story(parked())
    for attempt in range(1, 3 * POLICY.attempts):
        story(failed(attempt=attempt, reason="unreachable"))
        for _ in range(2):
            nodes += [node for _, _, node in story.until(story.now + 8_000)]
            story(registered("works", "node-1"))
            story(registered("broken", "node-2"))
    assert nodes[: POLICY.attempts + 1] == ["node-2"] * POLICY.attempts + ["node-1"]
    assert nodes[2 * POLICY.attempts] == "node-2", "the newest has its turn again"


def test_renewals_keep_a_call_and_what_is_repeated_moves_no_deadline() -> None:
    story = Story()
    story(parked())
    for _ in range(10):
        story(alive(), after=60_000)
        story.until(story.now)
    assert story.stay() is StayState.PARKED
    story(registered())
    deadline = story.desk.stays["gw-1/1"].deadline_ms
    for again in (started(), alive(state="dialing", attempt=1), started()):
        story(again, after=500)
    assert story.desk.stays["gw-1/1"].deadline_ms == deadline
    story(connected())
    for _ in range(10):
        story(connected(), after=60_000)
        story.until(story.now)
    assert story.stay() is StayState.CONNECTED


def test_a_missed_deadline_counts_as_a_failure() -> None:
    story = Story()
    story(registered())
    story(parked())
    story(registered(), after=5_000)
    story.until(story.now + 5_100)
    assert story.desk.stays["gw-1/1"].failures == 1


def test_a_herd_that_lapses_does_so_in_bounded_steps() -> None:
    story = Story(dataclasses.replace(POLICY, fan_out=10))
    for call in range(35):
        story(parked(str(call)), after=0)
    decision = story(timer(), after=POLICY.call_lease_ms)
    assert len(decision.changes.stays) == 10
    assert story.desk.row.overflow
    story.until(story.now)
    assert {stay.state for stay in story.desk.stays.values()} == {StayState.LAPSED}
    assert not story.desk.row.overflow


def test_the_age_of_a_registration_decides_and_not_its_name() -> None:
    story = Story()
    story(registered("z", "node-9"))
    story(registered("a", "node-1"))
    assert dialled(story(parked())) == [("1", 1, "node-1")]


def test_a_renewal_may_bring_another_uri_and_an_ended_instance_stays_ended() -> None:
    story = Story()
    story(registered())
    moved = registered().model_copy(update={"sip_uri": "sip:49123@192.0.2.77:5061;transport=tls"})
    story(moved)
    [instruction] = story(parked()).instructions
    assert instruction.sip_uri == moved.sip_uri
    story(unregistered())
    story.until(story.now + POLICY.ended_retention_ms - 60_000)
    assert story(registered()).outcome == "stale"


def test_a_uri_that_leads_to_another_conference_is_refused() -> None:
    story = Story()
    elsewhere = registered().model_copy(update={"sip_uri": "sip:99999@192.0.2.1:5060"})
    assert story(elsewhere).outcome == "refused"
    assert dialled(story(parked())) == []


def test_the_end_of_a_later_stay_ends_the_earlier_one_too() -> None:
    story = Story()
    story(parked(stay=1))
    story(left(stay=2))
    assert story(parked(stay=2)).outcome == "stale"
    assert dialled(story(registered())) == []


@pytest.mark.parametrize("silence", ["lapsed", "gone"])
@pytest.mark.parametrize(
    ("word", "state"),
    [
        (parked(), StayState.PARKED),
        (alive(), StayState.PARKED),
        (alive(state="connected", attempt=1), StayState.CONNECTED),
        (started(), StayState.DIALING),
        (connected(), StayState.CONNECTED),
        (failed(), StayState.PARKED),
    ],
    ids=lambda value: getattr(value, "type", None),
)
def test_any_word_of_the_gateway_revives_what_was_written_off(
    word: InputRecord, state: StayState, silence: str
) -> None:
    story = Story()
    story(parked())
    if silence == "lapsed":
        story.until(story.now + POLICY.call_lease_ms)
    else:
        story(left(reason="gone"))
    assert story(word).outcome == "revived"
    assert story.stay() is state


@pytest.mark.parametrize("first", ["lapse", "lose"])
def test_a_registration_that_was_written_off_still_ends_for_good(first: str) -> None:
    story = Story()
    story(registered())
    if first == "lapse":
        story.until(story.now + POLICY.registration_lease_ms)
    else:
        story(unregistered(reason="lost"))
    assert story(unregistered()).outcome == "ended"
    assert story(registered()).outcome == "stale"


def test_a_stub_is_kept_for_its_time_and_no_longer() -> None:
    story = Story()
    story(left(reason="hangup", stay=1))
    assert story.desk.empty
    emptied = story.now
    story(timer(), after=60_000)
    assert story.desk.next_due_ms(POLICY.stub_retention_ms) == emptied + POLICY.stub_retention_ms
    assert story(timer(), after=POLICY.stub_retention_ms - 60_001).outcome == "early"
    assert story(timer(), after=1).outcome == "retired"


def test_a_call_that_lapses_while_it_is_dialled() -> None:
    story = Story(dataclasses.replace(POLICY, call_lease_ms=3_000))
    story(registered())
    story(parked())
    assert story.until(story.now + 3_000) == []
    assert story.stay() is StayState.LAPSED


def test_a_talking_caller_that_the_desk_never_knew_is_adopted_and_left_alone() -> None:
    story = Story()
    story(registered())
    assert story(alive(state="connected", attempt=3)).outcome == "adopted"
    assert story.stay() is StayState.CONNECTED
    assert story(left(reason="conference-left")).outcome == "left"


def test_a_herd_is_dialled_in_bounded_steps_and_completely() -> None:
    story = Story(dataclasses.replace(POLICY, fan_out=10))
    for call in range(35):
        story(parked(str(call)))
    seen = [call for call, _, _ in dialled(story(registered()))]
    assert len(seen) == 10
    while story.desk.row.overflow:
        assert story.desk.next_due_ms(story.policy.stub_retention_ms) == story.desk.row.now_ms
        seen += [call for call, _, _ in dialled(story(timer()))]
    assert sorted(seen, key=int) == [str(call) for call in range(35)]


def test_a_node_that_is_not_allowed_is_never_a_target() -> None:
    story = Story(dataclasses.replace(POLICY, allowed_nodes=("192.0.2.1",)))
    assert story(registered("x", "node-9")).outcome == "refused"
    assert dialled(story(parked())) == []
    assert dialled(story(registered("a", "node-1"))) == [("1", 1, "node-1")]


def test_time_never_goes_back() -> None:
    story = Story()
    story(registered())
    story(parked(), after=-5000)
    assert story.desk.row.now_ms == 1_000_010


def test_an_ended_desk_shrinks_to_a_stub_and_is_forgotten_in_the_end() -> None:
    story = Story()
    story(registered())
    story(parked())
    story(left())
    story(unregistered())
    story(timer(), after=POLICY.ended_retention_ms)
    assert story.desk.empty
    assert story.desk.row.version == 5
    assert story(timer(), after=POLICY.stub_retention_ms).outcome == "retired"


def test_a_timer_too_early_changes_nothing() -> None:
    story = Story()
    story(registered())
    assert story(timer()).outcome == "early"
