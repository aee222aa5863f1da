"""Which registrations follow: from each recording, and from events and answers in every order that can happen."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callyard.records import UnregisterReason
from fs_hooks.conferences import MAINTENANCE, Change, Conference, Conferences, Ended, EventError, Opened, SnapshotError
from fs_hooks.esl import Event
from tests.support.esl import EXPECTED, RECORDINGS, expected, recording, replay, words

NOW_MS = 1_795_422_400_000


def event(instance: str, action: str = "conference-create", number: str = "49123") -> Event:
    return Event({
        "Event-Subclass": MAINTENANCE, "Action": action, "Conference-Name": number, "Conference-Unique-ID": instance,
        "Event-Date-Timestamp": "1795422240543447",
    })  # fmt: skip


def answer(*instances: str, number: str = "49123", **more: Any) -> str:
    return json.dumps([{"conference_name": number, "conference_uuid": i, "run_time": 4, **more} for i in instances])


def opened(instance: str, opened_at_ms: int | None = 1_795_422_240_543) -> Opened:
    return Opened(Conference("49123", instance, opened_at_ms))


def ended(instance: str, opened_at_ms: int | None = 1_795_422_240_543) -> Ended:
    return Ended(Conference("49123", instance, opened_at_ms), UnregisterReason.ENDED)


def test_each_recording_has_its_expectation() -> None:
    assert {path.stem for path in RECORDINGS} == {path.stem for path in EXPECTED.glob("*.txt")}


@pytest.mark.parametrize("name", sorted(path.stem for path in RECORDINGS if path.stem != "reconnect-after"))
def test_what_follows_from_a_recording(name: str) -> None:
    assert [words(change) for change in replay(name, Conferences())] == expected(name)


@pytest.mark.parametrize("name", ["all-events", "churn", "lifecycle-json", "lifecycle-plain", "names", "recreate"])
def test_the_expectation_says_what_the_raw_bytes_say(name: str) -> None:
    """Read apart from the program's reader: each create and destroy event, in order, with the headers before it."""
    text = recording(name).decode()
    plain = re.findall(r"Conference-Name: (\S+)\n(?:[^\n]+\n)*?Conference-Unique-ID: (\S+)\n(?:[^\n]+\n)*?"
                       r"Action: conference-(create|destroy)\n", text)  # fmt: skip
    as_json = re.findall(r'"Conference-Name":"(\w+)"[^{}]*?"Conference-Unique-ID":"([\w-]+)"[^{}]*?'
                         r'"Action":"conference-(create|destroy)"', text)  # fmt: skip
    told = [f"+ {number} {instance}" if what == "create" else f"- {number} {instance} ended"
            for number, instance, what in plain + as_json]  # fmt: skip
    assert told == expected(name)


def test_what_follows_from_being_away() -> None:
    conferences = Conferences()
    replay("reconnect-before", conferences)
    assert [words(change) for change in replay("reconnect-after", conferences)] == expected("reconnect-after")
    assert [conference.number for conference in conferences.live.values()] == ["43333"]


def test_a_create_event_tells_when_it_opened_and_a_snapshot_for_how_long_it_runs() -> None:
    conferences = Conferences()
    assert conferences.event(event("a")) == [opened("a")]
    assert conferences.snapshot(conferences.ask(), answer("a", "b"), NOW_MS) == [opened("b", NOW_MS - 4000)]


def test_any_event_of_an_unknown_instance_proves_that_it_exists() -> None:
    assert Conferences().event(event("a", "add-member")) == [opened("a", None)]


def test_other_events_say_nothing() -> None:
    conferences = Conferences()
    assert conferences.event(Event({"Event-Name": "HEARTBEAT"})) == []
    assert conferences.event(event("a", "conference-destroy")) == []


def test_a_destroy_before_its_create_is_remembered() -> None:
    conferences = Conferences()
    assert conferences.event(event("a", "conference-destroy")) == []
    assert conferences.event(event("a")) == []
    assert conferences.live == {}


def test_late_events_of_an_ended_instance_do_not_bring_it_back() -> None:
    conferences = Conferences()
    conferences.event(event("a"))
    assert conferences.event(event("a", "conference-destroy")) == [ended("a")]
    assert conferences.event(event("a", "del-member")) == []


def test_an_older_answer_does_not_remove_what_was_created_after_the_question() -> None:
    conferences = Conferences()
    question = conferences.ask()
    conferences.event(event("a"))
    assert conferences.snapshot(question, "[]", NOW_MS) == []
    assert conferences.snapshot(conferences.ask(), "[]", NOW_MS) == [ended("a")]


def test_an_older_answer_does_not_bring_back_what_was_destroyed_after_the_question() -> None:
    conferences = Conferences()
    conferences.event(event("a"))
    question = conferences.ask()
    conferences.event(event("a", "conference-destroy"))
    assert conferences.snapshot(question, answer("a"), NOW_MS) == []


def test_what_ended_by_a_snapshot_is_not_brought_back_by_its_last_events() -> None:
    conferences = Conferences()
    conferences.event(event("a"))
    assert conferences.snapshot(conferences.ask(), "[]", NOW_MS) == [ended("a")]
    assert conferences.event(event("a", "del-member")) == []
    assert conferences.event(event("a", "conference-destroy")) == []


def test_a_number_that_is_created_anew_at_once_is_two_instances_in_either_order() -> None:
    in_order, crossed = Conferences(), Conferences()
    first, second = event("a"), event("b")
    end = event("a", "conference-destroy")
    assert [c for e in (first, end, second) for c in in_order.event(e)] == [opened("a"), ended("a"), opened("b")]
    assert [c for e in (first, second, end) for c in crossed.event(e)] == [opened("a"), opened("b"), ended("a")]
    assert list(in_order.live) == list(crossed.live) == ["b"]


def test_what_is_lost_may_be_found_again() -> None:
    conferences = Conferences()
    conferences.event(event("a"))
    assert conferences.lost() == [Ended(opened("a").conference, UnregisterReason.LOST)]
    assert conferences.lost() == []
    assert conferences.snapshot(conferences.ask(), answer("a"), NOW_MS) == [opened("a", NOW_MS - 4000)]


def test_a_listed_conference_that_is_being_destroyed_cannot_be_reached() -> None:
    conferences = Conferences()
    conferences.event(event("a"))
    assert conferences.snapshot(conferences.ask(), answer("a", destruct=True), NOW_MS) == [ended("a")]


@pytest.mark.parametrize(
    "text", ["[]", " [] \n", "-ERR conference Command not found!\n", "+OK No active conferences.\n"]
)
def test_answers_that_mean_none(text: str) -> None:
    conferences = Conferences()
    conferences.event(event("a"))
    assert conferences.snapshot(conferences.ask(), text, NOW_MS) == [ended("a")]


@pytest.mark.parametrize(
    "text",
    ["", "-ERR no reply\n", "-ERR permission denied", "{}", "[", "[1]", '[{"conference_name":"49123"}]',
     '[{"conference_uuid":"a"}]', '[{"conference_name":"49123","conference_uuid":"no spaces"}]', "[" * 100_000],
)  # fmt: skip
def test_an_answer_that_cannot_be_read_decides_nothing(text: str) -> None:
    conferences = Conferences()
    conferences.event(event("a"))
    with pytest.raises(SnapshotError):
        conferences.snapshot(conferences.ask(), text, NOW_MS)
    assert list(conferences.live) == ["a"]


@pytest.mark.parametrize("number", ["4912", "491231234567", "lobby", "49123\n", "٤٩١٢٣", "49123@cluecon.com"])
def test_what_is_no_conference_number_is_left_out_and_counted_once(number: str) -> None:
    conferences = Conferences()
    assert conferences.event(event("a", number=number)) == []
    assert conferences.event(event("a", "add-member", number)) == []
    assert conferences.snapshot(conferences.ask(), answer("a", number=number), NOW_MS) == []
    assert conferences.left_out == {"not-a-number": 1}


def test_excluded_numbers_are_left_out_and_counted() -> None:
    conferences = Conferences(re.compile("99999"))
    assert conferences.event(event("a", number="99999")) == []
    assert conferences.left_out == {"excluded": 1}


@pytest.mark.parametrize(
    ("instance", "number"), [("", "49123"), ("with space", "49123"), ("a" * 129, "49123"), ("a", "")]
)
def test_an_event_that_does_not_say_which_conference_is_an_error(instance: str, number: str) -> None:
    with pytest.raises(EventError):
        Conferences().event(event(instance, number=number))


def test_what_is_remembered_is_bounded() -> None:
    conferences = Conferences(remembered=2)
    for instance in ("a", "b", "c"):
        conferences.event(event(instance, "conference-destroy"))
    assert conferences.event(event("b")) == conferences.event(event("c")) == []
    assert conferences.event(event("a")) == [opened("a")], "the oldest is forgotten"


# A node's true history, and what a hook may see of it: every event once or twice, in any order, with answers that were
# true at some moment between their question and their arrival.
INSTANCES = ["a", "b", "c", "d"]


@given(st.data())
def test_after_any_order_of_events_one_more_snapshot_tells_the_truth(data: st.DataObject) -> None:
    conferences = Conferences()
    truth: set[str] = set()
    begun: list[str] = []
    on_the_way: list[Event] = []
    question: tuple[int, str] | None = None
    known: set[str] = set()
    over: set[str] = set()

    def follow(changes: list[Change]) -> None:
        for change in changes:
            instance = change.conference.instance_id
            if isinstance(change, Opened):
                assert instance not in known, "registered twice"
                assert instance not in over, "brought back"
                known.add(instance)
            else:
                assert instance in known, "unregistered what wasn't registered"
                known.remove(instance)
                over.add(instance)
                assert instance not in truth, "unregistered what runs"

    for _ in range(data.draw(st.integers(0, 25))):
        step = data.draw(st.sampled_from(["begin", "end", "arrive", "ask", "answer"]))
        if step == "begin" and len(begun) < len(INSTANCES):
            instance = INSTANCES[len(begun)]
            begun.append(instance)
            truth.add(instance)
            on_the_way += [event(instance), event(instance, "add-member")]
        elif step == "end" and truth:
            instance = data.draw(st.sampled_from(sorted(truth)))
            truth.remove(instance)
            on_the_way += [event(instance, "del-member"), event(instance, "conference-destroy")]
        elif step == "arrive" and on_the_way:
            follow(conferences.event(on_the_way.pop(data.draw(st.integers(0, len(on_the_way) - 1)))))
        elif step == "ask" and question is None:
            question = (conferences.ask(), answer(*sorted(truth)))  # true when asked: as old as an answer can be
        elif step == "answer" and question is not None:
            if data.draw(st.booleans()):
                question = (question[0], answer(*sorted(truth)))  # true when it came: as new as it can be
            follow(conferences.snapshot(*question, NOW_MS))
            question = None
    if question is not None:
        follow(conferences.snapshot(*question, NOW_MS))
    follow(conferences.snapshot(conferences.ask(), answer(*sorted(truth)), NOW_MS))
    assert set(conferences.live) == known == truth
