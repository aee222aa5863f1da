"""What one desk decides after a talk, and when a conference can't be reached."""

from __future__ import annotations

import dataclasses

import pytest

from streams.rows import StayState
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

SECOND = 1000


def talking() -> Story:
    """A caller who has been in the conference at node-1 for a minute."""
    story = Story()
    story(registered())
    story(parked())
    story(started())
    story(connected())
    story.until(story.now + 20 * SECOND)
    story(registered())
    story.until(story.now + 20 * SECOND)
    story(registered())
    story.until(story.now + 20 * SECOND)
    story(registered())
    return story


def node_hangs_up(story: Story, after: str = "ended") -> list[tuple[str, int, str]]:
    """The node ends the talk, as the agent tells it; who is dialled or told something at once."""
    assert story(left(reason="conference-left")).instructions == ()
    return dialled(story(parked(stay=2, after=after)))


def removal(story: Story) -> list[tuple[str, int, str]]:
    """The window passes, and then the node renews its registration; what follows."""
    return removal_of(story, "a")


def removal_of(story: Story, instance: str) -> list[tuple[str, int, str]]:
    """As `removal`, of this instance of the conference."""
    said = story.until(story.now + POLICY.kick_ms)
    story(registered(instance))
    return said + story.until(story.now + POLICY.kick_ms)


# --- the node ended the talk as usual ---------------------------------------------------------------------------------


def test_who_was_removed_is_told_so_and_not_put_back_in() -> None:
    story = talking()
    assert node_hangs_up(story) == []
    assert story.until(story.now + POLICY.kick_ms) == [], "nobody has vouched for the conference since"
    assert dialled(story(registered())) == [], "a timer decides, when everything else has been read"
    assert story.until(story.now + POLICY.kick_ms) == [("1", 1, "removed")]
    assert story(left(stay=2, reason="removed")).outcome == "left"
    assert story.stay() is StayState.LEFT


@pytest.mark.parametrize("reason", ["ended", "lost"])
def test_a_registration_that_ends_soon_after_lets_the_caller_wait(reason: str) -> None:
    story = talking()
    node_hangs_up(story)
    story(unregistered(reason=reason), after=POLICY.kick_ms - SECOND)
    assert story.until(story.now + 20 * SECOND) == [], "nobody is told anything"
    assert dialled(story(registered("b", "node-2"))) == [("1", 1, "node-2")]


def test_a_registration_that_ended_just_before_lets_the_caller_wait() -> None:
    story = talking()
    story(unregistered())
    assert node_hangs_up(story) == []
    assert dialled(story(registered("b"))) == [("1", 1, "node-1")]


def test_a_conference_that_has_moved_already_is_followed_once_the_old_one_ends() -> None:
    story = talking()
    assert dialled(story(registered("b", "node-2"))) == []
    assert node_hangs_up(story) == [], "removed, or moved: not known yet"
    assert dialled(story(unregistered(), after=SECOND)) == [("1", 1, "node-2")]


def test_a_registration_that_comes_back_later_finds_a_caller_who_waits() -> None:
    story = talking()
    node_hangs_up(story)
    story(unregistered(reason="lost"), after=SECOND)
    story.until(story.now + 10 * SECOND)
    assert dialled(story(registered())) == [("1", 1, "node-1")], "FreeSWITCH lived on after all: nobody was removed"


def test_a_registration_that_comes_back_within_the_window_has_been_away() -> None:
    story = talking()
    node_hangs_up(story)
    story(unregistered(reason="lost"), after=SECOND)
    assert dialled(story(registered(), after=SECOND)) == [("1", 1, "node-1")]


def test_a_registration_that_was_away_before_the_talk_ended_removes_all_the_same() -> None:
    story = talking()
    story(unregistered(reason="lost"))
    story(registered())
    node_hangs_up(story)
    assert removal(story) == [("1", 1, "removed")]


def test_a_registration_that_lapses_in_the_window_has_ended() -> None:
    story = talking()
    lapses = story.now + POLICY.registration_lease_ms
    story.until(lapses - 2 * SECOND)
    node_hangs_up(story)
    assert story.until(lapses + POLICY.kick_ms) == []
    assert dialled(story(registered("b", "node-2"))) == [("1", 1, "node-2")]


def test_who_is_kicked_is_told_again_as_long_as_nothing_is_heard_of_it() -> None:
    story = talking()
    node_hangs_up(story)
    removal(story)
    story(registered())
    story.until(story.now + 20 * SECOND)
    story(registered())
    assert story.until(story.now + POLICY.tell_deadline_ms - 20 * SECOND) == [("1", 2, "removed")]


def test_a_conference_that_ends_while_its_hook_is_away_removes_nobody() -> None:
    story = talking()
    node_hangs_up(story)
    assert story.until(story.now + 3 * POLICY.kick_ms) == []
    story(unregistered())
    assert story.until(story.now + 3 * POLICY.kick_ms) == []
    assert dialled(story(registered("b", "node-2"))) == [("1", 1, "node-2")]


def test_a_conference_whose_hook_stays_away_ends_with_its_lease_and_removes_nobody() -> None:
    story = talking()
    node_hangs_up(story)
    assert story.until(story.now + 2 * POLICY.registration_lease_ms) == []
    assert dialled(story(registered("b", "node-2"))) == [("1", 1, "node-2")]


def test_what_is_read_late_is_not_taken_for_a_removal() -> None:
    """After a standstill of the stream the calls may be read before the registrations."""
    story = talking()
    node_hangs_up(story)
    assert dialled(story(alive(stay=2), after=2 * POLICY.kick_ms)) == []
    story(unregistered())
    assert story.until(story.now + 3 * POLICY.kick_ms) == []


def test_a_talk_that_is_known_from_hearsay_was_where_the_conference_ran() -> None:
    story = Story()
    story(registered())
    story(alive(state="connected", attempt=1))
    story(left(reason="conference-left"))
    assert dialled(story(parked(stay=2, after="ended"))) == []
    assert removal(story) == [("1", 1, "removed")]


def test_a_talk_that_is_known_from_hearsay_was_not_where_the_conference_runs_now() -> None:
    story = Story()
    story(registered())
    story(alive(state="connected", attempt=1))
    story(registered("b", "node-2"))
    story(unregistered())
    story(left(reason="conference-left"))
    assert dialled(story(parked(stay=2, after="ended"))) == [("1", 1, "node-2")]


def test_a_talk_that_began_when_its_registration_had_ended_was_with_the_next_one() -> None:
    story = Story()
    story(registered())
    story(parked())
    story(unregistered())
    story(registered("b"))
    story(connected())
    assert node_hangs_up(story) == []
    assert removal_of(story, "b") == [("1", 1, "removed")]


def test_a_stay_that_follows_a_talk_of_which_nothing_is_known_waits() -> None:
    story = Story()
    story(registered())
    assert dialled(story(parked(stay=2, after="ended"))) == [("1", 1, "node-1")]


def test_an_answer_that_is_heard_after_the_next_attempt_was_from_the_same_node() -> None:
    story = Story()
    story(registered())
    story(parked())
    story.until(story.now + POLICY.instruction_deadline_ms)
    assert story.desk.stays["gw-1/1"].attempt == 2
    story(connected(attempt=1))
    assert story.desk.stays["gw-1/1"].target == "node-1|freeswitch|a"
    story(registered("b", "node-2"))
    story(unregistered())
    node_hangs_up(story)
    assert story.stay() is StayState.DIALING, "to node-2, not held by it"


@pytest.mark.parametrize("away", ["gone", "lapsed"])
def test_who_was_away_within_the_window_is_judged_as_well(away: str) -> None:
    story = talking()
    node_hangs_up(story)
    if away == "gone":
        story(left(stay=2, reason="gone"))
    else:
        story.desk.load(dataclasses.replace(story.desk.stays["gw-1/1"], state=StayState.LAPSED))
    assert dialled(story(alive(stay=2))) == []
    story(unregistered())
    assert dialled(story(registered("b", "node-2"))) == [("1", 1, "node-2")]


def test_a_talk_that_is_torn_returns_to_waiting_whichever_attempt_it_came_from() -> None:
    story = Story()
    story(registered())
    story(parked())
    story.until(story.now + POLICY.instruction_deadline_ms)
    story(connected(attempt=1))
    assert story(failed(attempt=1, reason="other")).outcome == "dial-failed"
    assert story.stay() is StayState.PARKED


def test_nothing_is_held_where_no_conference_runs() -> None:
    story = Story()
    story(parked(stay=2, after="ended"))
    assert dialled(story(registered())) == [("1", 1, "node-1")]


def test_callers_of_a_conference_that_ends_are_all_followed() -> None:
    story = Story()
    story(registered())
    for call in ("1", "2", "3"):
        story(parked(call))
        story(connected(call))
    for call in ("1", "2", "3"):
        story(left(call, reason="conference-left"))
        story(parked(call, stay=2, after="ended"))
    story(unregistered())
    story.until(story.now + 2 * POLICY.kick_ms)
    assert dialled(story(registered("b", "node-2"))) == [(call, 1, "node-2") for call in ("1", "2", "3")]


# --- the node's leg was lost ------------------------------------------------------------------------------------------


def test_a_lost_leg_is_dialled_again_at_once() -> None:
    story = talking()
    assert node_hangs_up(story, "lost") == [("1", 1, "node-1")]


def test_a_lost_leg_waits_where_the_node_is_gone() -> None:
    story = talking()
    story(unregistered(reason="lost"))
    assert node_hangs_up(story, "lost") == []
    assert dialled(story(registered("b", "node-2"))) == [("1", 1, "node-2")]


def test_legs_that_are_lost_again_and_again_are_dialled_ever_later() -> None:
    story = talking()
    node_hangs_up(story, "lost")
    pauses = []
    for stay in range(2, 6):
        story(connected(stay=stay))
        story(left(stay=stay, reason="conference-left"))
        assert dialled(story(parked(stay=stay + 1, after="lost"))) == []
        pauses.append(story.desk.stays["gw-1/1"].retry_ms - story.now)
        story(registered())
        assert story.until(story.now + pauses[-1]) == [("1", 1, "node-1")]
    assert pauses == [1000, 2000, 4000, 8000]
    story(connected(stay=6))
    for _ in range(6):
        story.until(story.now + POLICY.short_talk_ms // 6)
        story(registered())
    story(left(stay=6, reason="conference-left"))
    assert dialled(story(parked(stay=7, after="lost"))) == [("1", 1, "node-1")], "a talk that held: at once again"


def test_legs_that_are_lost_again_and_again_give_the_next_node_its_turn() -> None:
    story = Story()
    story(registered("b", "node-2"))
    story(registered("a", "node-1"))
    story(parked())
    nodes = []
    for stay in range(1, POLICY.attempts + 2):
        story(connected(stay=stay))
        story(left(stay=stay, reason="conference-left"))
        story(parked(stay=stay + 1, after="lost"))
        story(registered("a", "node-1"))
        story(registered("b", "node-2"))
        nodes += [node for _, _, node in story.until(story.desk.stays["gw-1/1"].retry_ms)]
    assert nodes[: POLICY.attempts] == ["node-1"] * (POLICY.attempts - 1) + ["node-2"]


def test_the_renewal_of_a_lost_leg_does_not_end_its_pause() -> None:
    story = talking()
    node_hangs_up(story, "lost")
    story(connected(stay=2))
    story(left(stay=2, reason="conference-left"))
    lost = alive(stay=3).model_copy(update={"after": parked(after="lost").after})
    assert dialled(story(lost)) == []
    assert story.until(story.now + POLICY.backoff_ms) == [("1", 1, "node-1")]


def test_a_newer_registration_is_not_held_up_by_lost_legs() -> None:
    story = talking()
    node_hangs_up(story, "lost")
    story(connected(stay=2))
    story(left(stay=2, reason="conference-left"))
    assert dialled(story(parked(stay=3, after="lost"))) == []
    assert dialled(story(registered("b", "node-2"))) == [("1", 1, "node-2")]


# --- the conference can't be reached ----------------------------------------------------------------------------------


def unreachable(story: Story, attempts: int, first: int = 1, reason: str = "unreachable") -> list[tuple[str, int, str]]:
    """So many dials fail, each when it is due; what follows at once from the last one."""
    said: list[tuple[str, int, str]] = []
    for attempt in range(first, first + attempts):
        said = dialled(story(failed(attempt=attempt, reason=reason)))
        if said:
            break
        story(registered())
        story.until(story.desk.stays["gw-1/1"].retry_ms)
    return said


@pytest.mark.parametrize("reason", ["unreachable", "timeout", "busy", "other"])
def test_after_the_last_attempt_the_caller_is_told_and_waits_on(reason: str) -> None:
    story = Story()
    story(registered())
    story(parked())
    assert unreachable(story, POLICY.attempts, reason=reason) == [("1", POLICY.attempts + 1, "unreachable")]
    story(failed(attempt=POLICY.attempts + 1, reason="told"))
    story(registered())
    assert story.until(story.now + POLICY.backoff_max_ms) == [("1", POLICY.attempts + 2, "node-1")]
    assert unreachable(story, 3 * POLICY.attempts, POLICY.attempts + 2) == [], "told once"


def test_after_the_last_attempt_the_call_ends_where_the_policy_says_so() -> None:
    story = Story(dataclasses.replace(POLICY, after_attempts="end"))
    story(registered())
    story(parked())
    assert unreachable(story, POLICY.attempts) == [("1", POLICY.attempts + 1, "given-up")]
    story(left(reason="given-up"))
    assert story.stay() is StayState.LEFT


def test_every_live_registration_is_tried_before_the_caller_is_told() -> None:
    story = Story()
    story(registered("b", "node-2"))
    story(registered("a", "node-1"))
    story(parked())
    tried = ["node-1"]
    for attempt in range(1, 2 * POLICY.attempts):
        [] = dialled(story(failed(attempt=attempt, reason="unreachable")))
        story(registered("a", "node-1"))
        story(registered("b", "node-2"))
        tried += [node for _, _, node in story.until(story.desk.stays["gw-1/1"].retry_ms)]
    assert tried == ["node-1"] * POLICY.attempts + ["node-2"] * POLICY.attempts
    said = dialled(story(failed(attempt=2 * POLICY.attempts, reason="unreachable")))
    assert said == [("1", 2 * POLICY.attempts + 1, "unreachable")]


@pytest.mark.parametrize("reason", ["not-found", "not-parked"])
def test_what_says_nothing_against_the_node_is_never_told(reason: str) -> None:
    """Where the conference isn't found it has ended (and its lease is about to) or begins: back to waiting."""
    story = Story(dataclasses.replace(POLICY, after_attempts="end"))
    story(registered())
    story(parked())
    assert unreachable(story, 3 * POLICY.attempts, reason=reason) == []


def test_a_gateway_that_is_silent_is_not_told_to_give_up() -> None:
    story = Story(dataclasses.replace(POLICY, after_attempts="end"))
    story(registered())
    story(parked())
    said = []
    for _ in range(3 * POLICY.attempts):
        story(registered())
        story(alive())
        said += [what for _, _, what in story.until(story.now + POLICY.instruction_deadline_ms)]
    assert set(said) == {"node-1"}


def test_a_new_registration_counts_anew() -> None:
    story = Story()
    story(registered())
    story(parked())
    unreachable(story, POLICY.attempts - 1)
    assert dialled(story(registered("b", "node-2"))) == [], "an attempt is under way"
    assert dialled(story(failed(attempt=POLICY.attempts, reason="unreachable"))) == [
        ("1", POLICY.attempts + 1, "node-2")
    ]
    assert story.desk.stays["gw-1/1"].misses == 0


@pytest.mark.parametrize("reason", ["not-found", "not-parked"])
def test_failures_at_another_registration_do_not_count_for_this_one(reason: str) -> None:
    story = Story(dataclasses.replace(POLICY, after_attempts="end"))
    story(registered("b", "node-2"))
    story(registered("a", "node-1"))
    story(parked())
    for attempt in range(1, 2 * POLICY.attempts + 1):
        said = dialled(story(failed(attempt=attempt, reason="unreachable" if attempt <= POLICY.attempts else reason)))
        assert said == []
        story(registered("a", "node-1"))
        story(registered("b", "node-2"))
        story.until(story.desk.stays["gw-1/1"].retry_ms)


def test_failures_do_not_add_up_over_answers() -> None:
    story = Story(dataclasses.replace(POLICY, after_attempts="end"))
    story(registered())
    story(parked())
    for attempt in range(1, 10 * POLICY.attempts):
        assert dialled(story(failed(attempt=attempt, reason="not-found" if attempt % 3 else "timeout"))) == []
        story(registered())
        story.until(story.desk.stays["gw-1/1"].retry_ms)


def test_a_registration_that_comes_back_is_tried_before_anybody_is_told() -> None:
    story = Story(dataclasses.replace(POLICY, after_attempts="end"))
    story(registered("b", "node-2"))
    story(registered("a", "node-1"))
    story(parked())
    story(unregistered("a", "node-1", "lost"))
    assert dialled(story(failed(reason="unreachable"))) == [("1", 2, "node-2")]
    story(registered("a", "node-1"))
    assert dialled(story(failed(attempt=2, reason="refused"))) == [("1", 3, "node-1")]


def test_no_decision_concerns_more_callers_than_the_policy_says() -> None:
    story = Story(dataclasses.replace(POLICY, fan_out=2))
    for call in ("1", "2", "3", "4"):
        story(parked(call))
    story(registered())
    for call in ("1", "2"):
        story(failed(call, reason="not-found"))
    story.now = max(stay.retry_ms for stay in story.desk.stays.values())
    while (decision := story(timer(), after=0)).outcome != "early":
        assert len(decision.changes.stays) <= 2
    assert {stay.state for stay in story.desk.stays.values()} == {StayState.DIALING}


def test_a_notice_that_came_to_nothing_gives_way_to_dials() -> None:
    story = Story()
    story(registered())
    story(parked())
    unreachable(story, POLICY.attempts)
    story(failed(attempt=POLICY.attempts + 1, reason="not-parked"))
    story(registered())
    assert story.until(story.desk.stays["gw-1/1"].retry_ms) == [("1", POLICY.attempts + 2, "node-1")]
    assert not story.desk.stays["gw-1/1"].told


def test_a_connection_ends_what_was_being_told() -> None:
    story = Story()
    story(registered())
    story(parked())
    unreachable(story, POLICY.attempts)
    assert story(connected(attempt=POLICY.attempts + 1)).outcome == "connected"
    assert story.desk.stays["gw-1/1"].notice is None
