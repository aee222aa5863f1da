"""AMI dictionaries become records, or are set aside with a reason; nothing else happens."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.messages import (
    VARIABLES,
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
    Unreadable,
    failure_reason,
    read_channel,
    read_event,
    read_parked,
)
from callyard.records import AfterTalk, FailureReason


def variables(
    conference: str = "49123", stay: str = "1", state: str = "parked", mark: str = "", failed: str = "",
    after: str = "",
) -> Any:  # fmt: skip
    values = (conference, stay, state, mark, failed, after)
    return [f"{name}={value}" for name, value in zip(VARIABLES, values, strict=True)]


PARKED = {
    "Event": "ParkedCall",
    "ParkeeChannel": "PJSIP/callyard-trunk-00000000",
    "ParkeeUniqueid": "1795457051.0",
    "ParkeeCallerIDNum": "+4930123456",
    "ParkingDuration": "7",
    "ParkeeChanVariable": variables(),
}
DIAL = {"Event": "DialBegin", "Channel": "PJSIP/callyard-trunk-00000000", "Uniqueid": "1795457051.0"}
DIALING = Marks("49123", 1, ChannelState.DIALING, 2)


def test_a_parked_call() -> None:
    marks = Marks("49123", 1, ChannelState.PARKED)
    parked = Parked("1795457051.0", "PJSIP/callyard-trunk-00000000", marks, "+4930123456", 7)
    assert read_event(PARKED) == parked
    assert read_parked(PARKED) == parked


def test_a_call_parked_again_tells_how_its_dial_failed() -> None:
    marks = variables(stay="3", mark="3x2", failed="3x2/CHANUNAVAIL/1/404")
    event = read_event({**PARKED, "ParkeeChanVariable": marks})
    assert isinstance(event, Parked)
    assert event.marks == Marks("49123", 3, ChannelState.PARKED, 2, Failure(FailureReason.NOT_FOUND, 1, 404))


def test_marks_of_an_earlier_stay_count_as_none() -> None:
    marks = variables(stay="3", mark="2x5", failed="2x5/BUSY/17/486")
    event = read_event({**PARKED, "ParkeeChanVariable": marks})
    assert isinstance(event, Parked)
    assert event.marks == Marks("49123", 3, ChannelState.PARKED, 0, None)


@pytest.mark.parametrize(
    ("value", "after"),
    [("ended/16", After(AfterTalk.ENDED, 16)), ("lost/", After(AfterTalk.LOST)), ("lost/999", After(AfterTalk.LOST))],
)
def test_a_stay_that_follows_a_talk(value: str, after: After) -> None:
    event = read_event({**PARKED, "ParkeeChanVariable": variables(stay="2", after=value)})
    assert isinstance(event, Parked)
    assert event.marks == Marks("49123", 2, ChannelState.PARKED, after=after)


def test_dials() -> None:
    ours = {**DIAL, "ChanVariable": variables(state="dialing", mark="1x2")}
    assert read_event(ours) == DialBegan("1795457051.0", "PJSIP/callyard-trunk-00000000", DIALING)
    for status, answered in (("ANSWER", True), ("NOANSWER", False), ("CANCEL", False)):
        ended = read_event({**ours, "Event": "DialEnd", "DialStatus": status})
        assert ended == DialEnded("1795457051.0", "PJSIP/callyard-trunk-00000000", DIALING, answered)


def test_a_hangup_is_read_whatever_the_channel_carries() -> None:
    headers = {"Event": "Hangup", "Channel": "PJSIP/x-1", "Uniqueid": "1.0", "Cause": "16"}
    assert read_event(headers) == HungUp("1.0", 16, None)
    assert read_event({**headers, "ChanVariable": variables(stay="broken")}) == HungUp("1.0", 16, None)
    over = read_event({**headers, "ChanVariable": variables(state="over")})
    assert over == HungUp("1.0", 16, Marks("49123", 1, ChannelState.OVER))


def test_an_entry_of_status() -> None:
    entry = {
        "Event": "Status",
        "Channel": "PJSIP/callyard-trunk-00000000",
        "Uniqueid": "1.0",
        "CallerIDNum": "<unknown>",
        "BridgeID": "31f5c495",
        "Variable": variables(state="dialing", mark="1x2", failed="(null)"),
    }
    assert read_channel(entry) == Channel("1.0", "PJSIP/callyard-trunk-00000000", DIALING, True, "")


@pytest.mark.parametrize(
    "foreign",
    [
        {},
        {"Event": "FullyBooted"},
        {"Event": "ParkedCallGiveUp", **PARKED, "ignored": "x"} | {"Event": "ParkedCallGiveUp"},
        {**PARKED, "ParkeeChanVariable": "OTHER=1"},
        {**PARKED, "ParkeeChanVariable": variables(stay="")},
        {**PARKED, "ParkeeChanVariable": variables(conference="")},
        {k: v for k, v in PARKED.items() if k != "ParkeeChanVariable"},
        {**DIAL, "DestChanVariable": variables()},
    ],
)
def test_what_is_not_ours_is_none(foreign: dict[str, Any]) -> None:
    assert read_event(foreign) is None


def test_the_node_leg_in_status_is_not_ours() -> None:
    unset = [f"{name}=(null)" for name in VARIABLES]
    assert read_channel({"Event": "Status", "Channel": "PJSIP/n-1", "Uniqueid": "1.3", "Variable": unset}) is None


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        ({"ParkeeChanVariable": variables(conference="4912")}, "CALLYARD_CONFERENCE"),
        ({"ParkeeChanVariable": variables(conference="49123\n")}, "CALLYARD_CONFERENCE"),
        ({"ParkeeChanVariable": variables(conference="49123x")}, "CALLYARD_CONFERENCE"),
        ({"ParkeeChanVariable": variables(stay="0")}, "CALLYARD_STAY"),
        ({"ParkeeChanVariable": variables(stay="-1")}, "CALLYARD_STAY"),
        ({"ParkeeChanVariable": variables(stay="9999999")}, "CALLYARD_STAY"),
        ({"ParkeeChanVariable": variables(after="begun/16")}, "CALLYARD_AFTER"),
        ({"ParkeeChanVariable": variables(state="sleeping")}, "CALLYARD_STATE"),
        ({"ParkeeChanVariable": variables(mark="1")}, "CALLYARD_MARK"),
        ({"ParkeeChanVariable": variables(failed="1x1/BUSY")}, "CALLYARD_FAILED"),
        ({"ParkeeUniqueid": ""}, "ParkeeUniqueid"),
        ({"ParkeeUniqueid": "1 2"}, "ParkeeUniqueid"),
        ({"ParkeeChannel": ""}, "ParkeeChannel"),
    ],
)
def test_what_is_ours_and_broken_is_set_aside_by_name(broken: dict[str, Any], named: str) -> None:
    for read in (read_event, read_parked):
        result = read({**PARKED, **broken})
        assert isinstance(result, Unreadable)
        assert named in result.reason


@pytest.mark.parametrize(
    ("status", "cause", "code", "reason"),
    [
        ("CHANUNAVAIL", 1, 404, FailureReason.NOT_FOUND),
        ("NOANSWER", 1, 0, FailureReason.NOT_FOUND),
        ("CHANUNAVAIL", 0, 410, FailureReason.NOT_FOUND),
        ("CHANUNAVAIL", 21, 403, FailureReason.REFUSED),
        ("CONGESTION", 21, 0, FailureReason.REFUSED),
        ("BUSY", 17, 486, FailureReason.BUSY),
        ("BUSY", 0, 0, FailureReason.BUSY),
        ("NOANSWER", 19, 480, FailureReason.TIMEOUT),
        ("NOANSWER", 0, 0, FailureReason.TIMEOUT),
        ("CONGESTION", 34, 503, FailureReason.UNREACHABLE),
        ("CHANUNAVAIL", 20, 0, FailureReason.UNREACHABLE),
        ("CONGESTION", 0, 500, FailureReason.UNREACHABLE),
        ("BADURI", 0, 0, FailureReason.BAD_INSTRUCTION),
        ("REDIRECTED", 0, 0, FailureReason.OTHER),
        ("", 127, 0, FailureReason.OTHER),
        ("TOLD", 0, 0, FailureReason.TOLD),
    ],
)
def test_what_a_failed_dial_means(status: str, cause: int, code: int, reason: FailureReason) -> None:
    assert failure_reason(status, cause, code) is reason


text = st.text(max_size=20) | st.sampled_from(["1", "49123", "parked", "1x1", "1x1/BUSY/17/486", "9" * 30])
values = text | st.lists(text, max_size=3) | st.builds(variables, text, text, text, text, text)
KINDS = ["ParkedCall", "DialBegin", "DialEnd", "Hangup", "Status"]


@given(
    st.dictionaries(
        st.sampled_from([*PARKED, *DIAL, "ChanVariable", "Variable", "Cause", "DialStatus", "BridgeID", "CallerIDNum"]),
        values,
    ),
    st.sampled_from(KINDS),
)
def test_reading_never_raises(headers: dict[str, Any], kind: str) -> None:
    headers["Event"] = kind
    for read in (read_event, read_parked, read_channel):
        result = read(headers)
        assert result is None or isinstance(result, (Parked, DialBegan, DialEnded, HungUp, Channel, Unreadable))


@pytest.mark.parametrize(
    ("digit", "direction", "read"), [("*", "Received", True), ("*", "Sent", False), ("5", "Received", False)]
)
def test_only_a_pressed_star_is_read(digit: str, direction: str, read: bool) -> None:
    headers = {
        "Event": "DTMFEnd", "Channel": "PJSIP/t-1", "Uniqueid": "1.0", "Digit": digit, "Direction": direction,
        "ChanVariable": ["CALLYARD_STAY=1", "CALLYARD_CONFERENCE=49123", "CALLYARD_STATE=parked"],
    }  # fmt: skip
    event = read_event(headers)
    assert isinstance(event, Starred) is read
    assert event is None or event.marks.state is ChannelState.PARKED
