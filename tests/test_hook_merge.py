"""Two sources, one registration for each conference: told by example, and as properties of any history."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callyard.records import Source, UnregisterReason
from fs_hooks.instances import Change, Conference, Ended, Opened
from fs_hooks.merge import Merge

FREESWITCH, BIGBLUEBUTTON = Source.FREESWITCH, Source.BIGBLUEBUTTON
BOTH = (FREESWITCH, BIGBLUEBUTTON)
ENDED, LOST = UnregisterReason.ENDED, UnregisterReason.LOST


def room(instance: str = "r1", number: str = "49123") -> Conference:
    return Conference(number, instance, source=FREESWITCH)


def meeting(instance: str = "m1", number: str = "49123") -> Conference:
    return Conference(number, instance, source=BIGBLUEBUTTON)


def both(*, through_freeswitch: bool = True) -> Merge:
    merge = Merge(BOTH, through_freeswitch=through_freeswitch)
    for source in BOTH:
        assert merge.followed(source) == []
    return merge


def words(changes: list[Change]) -> list[str]:
    return [
        f"+{change.conference.instance_id}"
        if isinstance(change, Opened)
        else f"-{change.conference.instance_id} {change.reason.value}"
        for change in changes
    ]


def open_(merge: Merge, *conferences: Conference) -> list[str]:
    return words(merge.apply([Opened(conference) for conference in conferences]))


def end(merge: Merge, conference: Conference, reason: UnregisterReason = ENDED) -> list[str]:
    return words(merge.apply([Ended(conference, reason)]))


@pytest.mark.parametrize("source", BOTH)
def test_one_source_alone_is_passed_on(source: Source) -> None:
    merge = Merge([source])
    conference = Conference("49123", "a", source=source)
    assert words(merge.followed(source)) == []
    assert open_(merge, conference) == ["+a"]
    assert end(merge, conference) == ["-a ended"]
    assert merge.live == {}


def test_nothing_is_registered_before_each_source_was_tried() -> None:
    merge = Merge(BOTH)
    assert open_(merge, room()) == []
    assert words(merge.followed(FREESWITCH)) == []
    assert not merge.begun
    assert open_(merge, meeting()) == []
    assert words(merge.followed(BIGBLUEBUTTON)) == ["+m1"]
    assert merge.begun


def test_a_source_that_is_away_from_the_start_holds_up_nothing() -> None:
    merge = Merge(BOTH)
    open_(merge, room())
    merge.followed(FREESWITCH)
    assert words(merge.lost(BIGBLUEBUTTON)) == ["+r1"]
    assert merge.begun


def test_a_caller_may_come_before_anybody_has_joined_audio_and_the_room_changes_nothing() -> None:
    merge = both()
    assert open_(merge, meeting()) == ["+m1"]
    assert open_(merge, room()) == []
    assert end(merge, room()) == []
    assert end(merge, meeting()) == ["-m1 ended"]


def test_the_registration_ends_with_the_meeting_though_the_room_stays() -> None:
    merge = both()
    open_(merge, meeting(), room())
    assert end(merge, meeting()) == ["-m1 ended"]
    assert end(merge, room()) == []


def test_a_room_that_begins_after_its_meeting_is_a_ghost() -> None:
    merge = both()
    open_(merge, meeting())
    end(merge, meeting())
    assert open_(merge, room("ghost")) == []
    assert open_(merge, meeting("m2")) == ["+m2"], "the number is used again"


def test_a_room_without_any_meeting_is_registered_and_hands_over_to_a_meeting_without_a_gap() -> None:
    merge = both()
    assert open_(merge, room()) == ["+r1"]
    assert open_(merge, meeting()) == ["+m1", "-r1 lost"]


def test_the_room_stands_in_while_meetings_cannot_be_vouched_for() -> None:
    merge = both()
    open_(merge, meeting(), room(), meeting("m2", "42222"))
    assert end(merge, meeting(), LOST) == ["+r1", "-m1 lost"]
    assert end(merge, meeting("m2", "42222"), LOST) == ["-m2 lost"]
    assert words(merge.lost(BIGBLUEBUTTON)) == []
    assert open_(merge, meeting()) == ["+m1", "-r1 lost"]


def test_a_room_whose_meeting_ended_does_not_stand_in_but_a_new_one_does() -> None:
    merge = both()
    open_(merge, meeting(), room())
    end(merge, meeting())
    assert words(merge.lost(BIGBLUEBUTTON)) == []
    assert open_(merge, room("r2")) == ["+r2"], "its meeting may have begun while nobody could tell"


def test_a_number_used_by_two_meetings_for_a_moment_keeps_the_new_one() -> None:
    merge = both()
    open_(merge, meeting("m1"), room())
    assert open_(merge, meeting("m2")) == ["+m2"]
    assert end(merge, meeting("m1")) == ["-m1 ended"]
    assert words(merge.apply([Ended(meeting("m2"), LOST)])) == ["+r1", "-m2 lost"]


def test_meetings_that_are_reached_through_freeswitch_end_with_it_and_come_back() -> None:
    merge = both()
    open_(merge, meeting(), room())
    end(merge, room(), LOST)
    assert words(merge.lost(FREESWITCH)) == ["-m1 lost"]
    assert open_(merge, meeting("m2", "42222")) == []
    assert sorted(words(merge.followed(FREESWITCH))) == ["+m1", "+m2"]


def test_meetings_that_are_reached_elsewhere_do_not_depend_on_freeswitch() -> None:
    merge = both(through_freeswitch=False)
    open_(merge, meeting())
    assert words(merge.lost(FREESWITCH)) == []
    assert list(merge.live) == [meeting().key]


def test_an_instance_id_that_both_sources_use_is_two_instances() -> None:
    merge = both()
    assert open_(merge, room("same", "41111"), meeting("same", "42222")) == ["+same", "+same"]
    assert end(merge, room("same", "41111")) == ["-same ended"]
    assert list(merge.live.values()) == [meeting("same", "42222")]


NUMBERS = ["41111", "42222"]
SETTLED = st.sampled_from(["open", "open", "end", "lose", "follow"])


@given(st.data())
def test_any_history(data: st.DataObject) -> None:
    """What must hold after every step, whatever the two sources say in whatever order."""
    through_freeswitch = data.draw(st.booleans())
    merge = Merge(BOTH, through_freeswitch=through_freeswitch)
    known: dict[Source, dict[str, Conference]] = {source: {} for source in BOTH}
    state: dict[Source, bool | None] = dict.fromkeys(BOTH)
    registered: dict[str, Conference] = {}
    over: set[str] = set()
    count = 0

    def follow(changes: list[Change]) -> None:
        for change in changes:
            key = change.conference.key
            if isinstance(change, Opened):
                assert key not in registered, "registered twice"
                assert key not in over, "brought back"
                registered[key] = change.conference
            else:
                assert registered.pop(key) == change.conference
                if change.reason is ENDED:
                    assert key not in known[change.conference.source], "said to have ended, and runs"
                    over.add(key)

    for _ in range(data.draw(st.integers(1, 30))):
        source = data.draw(st.sampled_from(BOTH))
        step = data.draw(SETTLED)
        ended_meeting = ""
        if step == "open" and state[source] is not False:
            count += 1
            conference = Conference(data.draw(st.sampled_from(NUMBERS)), f"i{count}", source=source)
            known[source][conference.key] = conference
            follow(merge.apply([Opened(conference)]))
        elif step == "end" and known[source]:
            conference = known[source].pop(data.draw(st.sampled_from(sorted(known[source]))))
            ended_meeting = conference.number if source is BIGBLUEBUTTON else ""
            follow(merge.apply([Ended(conference, ENDED)]))
        elif step == "lose":
            gone, known[source] = list(known[source].values()), {}
            state[source] = False
            follow(merge.apply([Ended(conference, LOST) for conference in gone]))
            follow(merge.lost(source))
        elif step == "follow":
            state[source] = True
            follow(merge.followed(source))
        assert registered == merge.live
        for number in NUMBERS:
            mine = {key for key, conference in registered.items() if conference.number == number}
            meetings = {key for key, c in known[BIGBLUEBUTTON].items() if c.number == number}
            rooms = {key for key, c in known[FREESWITCH].items() if c.number == number}
            if None in state.values():
                assert mine == set(), "a source has not been tried"
            elif meetings and (state[FREESWITCH] or not through_freeswitch):
                assert mine == meetings, "a meeting that can be reached is what is registered, and nothing beside it"
            elif meetings:
                assert mine == set(), "FreeSWITCH is away: the meeting can't be reached"
            else:
                assert mine <= rooms, "what isn't known is registered"
                if ended_meeting == number:
                    assert mine == set(), "the meeting has ended, and with it the conference"
