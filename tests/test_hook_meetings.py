"""What BigBlueButton's messages, its list and Redis's bytes mean; hostile ones, too."""

from __future__ import annotations

import contextlib
import hashlib
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callyard.records import Source
from fs_hooks import getmeetings, resp, web
from fs_hooks.getmeetings import AnswerError, RefusedError
from fs_hooks.instances import Conference, Listed, Opened
from fs_hooks.meetings import Meetings, MessageError
from tests.support.bigbluebutton import CHECKSUM_ERROR, Meeting, created, http, message

INSTANCE = "183f0bf3a0982a127bdb8161e0c44eb696b3e75c-1531240585189"
CREATED_MS = 1_531_240_585_189


def said(what: dict[str, Any]) -> bytes:
    return orjson.dumps(what)


def begun(instance: str = INSTANCE, number: str = "49123") -> bytes:
    return said(created(number, instance, CREATED_MS))


def over(name: str = "MeetingEndedEvtMsg", instance: str = INSTANCE) -> bytes:
    return said(message(name, {"meetingId": instance}))


def words(meetings: Meetings, data: bytes) -> list[str]:
    return [
        ("+" if isinstance(change, Opened) else "-") + change.conference.number for change in meetings.message(data)
    ]


# --- messages -------------------------------------------------------------------------------------------------------


def test_a_meeting_begins_with_its_number_id_and_time() -> None:
    [change] = Meetings().message(begun())
    assert change == Opened(Conference("49123", INSTANCE, CREATED_MS, Source.BIGBLUEBUTTON))


@pytest.mark.parametrize("name", ["MeetingEndedEvtMsg", "MeetingDestroyedEvtMsg"])
def test_either_message_ends_it_once(name: str) -> None:
    meetings = Meetings()
    meetings.message(begun())
    assert words(meetings, over(name)) == ["-49123"]
    assert words(meetings, over("MeetingDestroyedEvtMsg")) == []
    assert words(meetings, begun()) == [], "what ended is never brought back"


def test_the_list_may_still_have_what_has_ended() -> None:
    meetings = Meetings()
    meetings.message(begun())
    meetings.message(over())
    assert meetings.reconcile(meetings.ask(), [Listed("49123", INSTANCE)]) == []


def test_a_list_asked_for_before_a_meeting_began_does_not_end_it() -> None:
    meetings = Meetings()
    question = meetings.ask()
    meetings.message(begun())
    assert meetings.reconcile(question, []) == []
    assert len(meetings.reconcile(meetings.ask(), [])) == 1


def test_a_breakout_room_is_a_meeting_of_its_own() -> None:
    meetings = Meetings()
    meetings.message(begun())
    assert words(meetings, said(created("491231", "b-1", CREATED_MS, breakout=True))) == ["+491231"]
    assert words(meetings, over(instance="b-1")) == ["-491231"]
    assert list(meetings.live) == [INSTANCE]


def test_what_is_said_in_other_messages_is_passed_over_even_where_it_names_one_of_ours() -> None:
    meetings = Meetings()
    for data in (
        b"", b"\xff\xfe", b"{", said(message("UserJoinedMeetingEvtMsg", {"intId": "w_1"})),
        said(message("GroupChatMessageBroadcastEvtMsg", {"message": "MeetingEndedEvtMsg"})),
        said(message("GroupChatMessageBroadcastEvtMsg", {"meetingId": INSTANCE, "m": '"MeetingEndedEvtMsg"'})),
        said({"envelope": {"name": "MeetingEndedEvtMsg"}, "core": {"header": {"name": "Other"}, "body": {}}}),
    ):  # fmt: skip
        assert meetings.message(data) == []
    meetings.message(begun())
    assert words(meetings, said(message("Chat", {"meetingId": INSTANCE, "MeetingEndedEvtMsg": 1}))) == []


@pytest.mark.parametrize(
    "data",
    [
        b'"MeetingEndedEvtMsg"', b'{"MeetingEndedEvtMsg"', b"[" * 100_000 + b'"MeetingEndedEvtMsg"',
        said({"core": {"header": {"name": "MeetingEndedEvtMsg"}}}),
        said(message("MeetingEndedEvtMsg", {})), said(message("MeetingEndedEvtMsg", {"meetingId": 1})),
        over(instance=""), over(instance="a b"), over(instance="x" * 200),
        said(message("MeetingCreatedEvtMsg", {"props": []})),
        said(message("MeetingCreatedEvtMsg", {"props": {"meetingProp": {"intId": INSTANCE}}})),
        begun(instance="ü"),
    ],
)  # fmt: skip
def test_a_message_about_a_meeting_that_cannot_be_read_is_an_error_and_changes_nothing(data: bytes) -> None:
    meetings = Meetings()
    with pytest.raises(MessageError):
        meetings.message(data)
    assert meetings.live == {}


@pytest.mark.parametrize("time", [None, -1, 0, True, "1531240585189", 1.5, 10**15])
def test_a_time_that_is_none_is_left_out(time: object) -> None:
    what = created("49123", INSTANCE, CREATED_MS)
    what["core"]["body"]["props"]["durationProps"] = {"createdTime": time}
    [change] = Meetings().message(said(what))
    assert change.conference.opened_at_ms is None


@pytest.mark.parametrize(
    "number", ["", "1234", "123456789012", "49123\n", "\uff14\uff19\uff11\uff12\uff13", "sip:49123@x"]
)
def test_a_voice_conference_that_is_no_number_is_left_out(number: str) -> None:
    meetings = Meetings()
    assert meetings.message(begun(number=number)) == []
    assert meetings.left_out == {"not-a-number": 1}


# --- getMeetings ----------------------------------------------------------------------------------------------------


def answer(inner: str) -> bytes:
    return f"<response><returncode>SUCCESS</returncode><meetings>{inner}</meetings></response>".encode()


def entry(**fields: str) -> str:
    known = {"internalMeetingID": INSTANCE, "voiceBridge": "49123", "createTime": str(CREATED_MS), **fields}
    return "<meeting>" + "".join(f"<{name}>{text}</{name}>" for name, text in known.items() if text) + "</meeting>"


def test_the_request_is_signed_as_the_documentation_says() -> None:
    """The example of BigBlueButton's API documentation, with another call and SHA-256."""
    secret = "639259d4-9dd8-4b25-bf01-95f9567eaf4b"
    checksum = hashlib.sha256(b"getMeetings639259d4-9dd8-4b25-bf01-95f9567eaf4b").hexdigest()
    assert len(checksum) == 64
    assert getmeetings.path("/bigbluebutton/api", secret) == f"/bigbluebutton/api/getMeetings?checksum={checksum}"


def test_a_list_as_the_template_writes_it() -> None:
    meeting, other = Meeting("49123", CREATED_MS, breakout=False), Meeting("491231", CREATED_MS, breakout=True)
    assert getmeetings.meetings(answer(meeting.xml() + other.xml())) == [
        Listed("49123", meeting.instance, CREATED_MS), Listed("491231", other.instance, CREATED_MS),
    ]  # fmt: skip


def test_the_forms_without_a_meeting() -> None:
    for text in (
        "<response><returncode>SUCCESS</returncode><meetings/><messageKey>noMeetings</messageKey></response>",
        '\ufeff  <?xml version="1.0" encoding="ebcdic"?>\n<response><returncode>SUCCESS</returncode></response>',
    ):
        assert getmeetings.meetings(text.encode()) == []


def test_a_meeting_that_was_ended_by_force_is_over() -> None:
    assert getmeetings.meetings(answer(entry(hasBeenForciblyEnded="true") + entry(hasBeenForciblyEnded="false"))) == [
        Listed("49123", INSTANCE, CREATED_MS)
    ]


def test_fields_of_users_and_metadata_are_no_meetings_fields() -> None:
    inner = (
        f"<meeting><metadata><internalMeetingID>x</internalMeetingID></metadata><voiceBridge>49123</voiceBridge>"
        f"<attendees><meeting><voiceBridge>11111</voiceBridge></meeting></attendees>"
        f"<internalMeetingID>{INSTANCE}</internalMeetingID></meeting>"
    )
    assert getmeetings.meetings(answer(inner)) == [Listed("49123", INSTANCE, None)]


def test_control_characters_in_a_name_do_not_spoil_the_list() -> None:
    hostile = entry(meetingName="a\x00b\x0bc\x1f").encode() + b"\xff\xfe"
    [listed] = getmeetings.meetings(answer("HERE").replace(b"HERE", hostile))
    assert listed.instance_id == INSTANCE


def test_a_wrong_secret_is_a_refusal_with_its_key() -> None:
    with pytest.raises(RefusedError, match="checksumError: Checksums do not match") as raised:
        getmeetings.meetings(CHECKSUM_ERROR.encode())
    assert raised.value.key == "checksumError"


BILLION_LAUGHS = (
    '<!DOCTYPE r [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    "<response><returncode>SUCCESS</returncode><message>&b;</message></response>"
)


@pytest.mark.parametrize(
    "text",
    [
        "", "{}", "<html>Bad gateway</html>", "<response/>", "<response><returncode>SUCCESS</returncode>",
        "<response><returncode>MAYBE</returncode></response>", BILLION_LAUGHS,
        '<!DOCTYPE r SYSTEM "file:///etc/passwd"><response><returncode>SUCCESS</returncode></response>',
        "<a>" * 100_000, answer(entry(internalMeetingID="")).decode(), answer(entry(voiceBridge="")).decode(),
        answer(entry(internalMeetingID="a b")).decode(), answer(entry() + "<meeting/>").decode(),
        answer("&nbsp;").decode(),
    ],
)  # fmt: skip
def test_an_answer_that_cannot_be_read_decides_nothing(text: str) -> None:
    with pytest.raises(AnswerError):
        getmeetings.meetings(text.encode())


def test_endless_text_in_a_field_is_not_kept() -> None:
    [listed] = getmeetings.meetings(answer(entry(voiceBridge="4" * 5_000_000)))
    assert len(listed.number) <= getmeetings.MAX_TEXT


@given(st.binary(max_size=300))
def test_any_bytes_are_an_answer_a_refusal_or_an_error(data: bytes) -> None:
    for text in (data, b"<response>" + data + b"</response>", answer("X").replace(b"X", data)):
        with contextlib.suppress(AnswerError, RefusedError):  # any other exception fails the test
            getmeetings.meetings(text)


# --- Redis's bytes --------------------------------------------------------------------------------------------------

STREAM = (
    b"+OK\r\n*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$4\r\n{\r\n}\r\n"
    b"$-1\r\n-NOAUTH Authentication required.\r\n*2\r\n$4\r\npong\r\n$0\r\n\r\n"
)
REPLIES = [
    b"OK", [b"subscribe", b"c", 1], [b"message", b"c", b"{\r\n}"], None,
    resp.Refused("NOAUTH Authentication required."), [b"pong", b""],
]  # fmt: skip


def test_replies_whole_byte_by_byte_and_split_anywhere() -> None:
    assert resp.Reader().feed(STREAM) == REPLIES
    reader = resp.Reader()
    assert [reply for byte in STREAM for reply in reader.feed(bytes([byte]))] == REPLIES
    for cut in range(len(STREAM)):
        reader = resp.Reader()
        assert reader.feed(STREAM[:cut]) + reader.feed(STREAM[cut:]) == REPLIES


def test_a_large_value_is_passed_over_without_being_held() -> None:
    reader, size = resp.Reader(), resp.MAX_VALUE_BYTES * 20
    assert reader.feed(b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$%d\r\n" % size) == []
    for _ in range(20):
        assert reader.feed(b"x" * resp.MAX_VALUE_BYTES) == []
        assert reader.buffered < 10
    assert reader.feed(b"\r\n+OK\r\n") == [[b"message", b"c", resp.TooLarge(size)], b"OK"]


@pytest.mark.parametrize(
    "data",
    [b"HTTP/1.1 400 Bad Request\r\n", b"\x00\r\n", b"$x\r\n", b"$-2\r\n", b"*0\r\n", b"*65\r\n", b"*2\r\n*2\r\n",
     b"$2\r\nabcd\r\n", b":1e3\r\n", b"$" + b"9" * 30 + b"\r\n", b"+" + b"x" * 9000, b"\r\n"],
)  # fmt: skip
def test_what_is_not_redis_is_found_out(data: bytes) -> None:
    with pytest.raises(resp.RespError):
        resp.Reader().feed(data)


@given(st.lists(st.binary(max_size=50), max_size=10))
def test_any_bytes_are_replies_or_an_error_and_little_is_held(pieces: list[bytes]) -> None:
    reader = resp.Reader()
    try:
        for piece in pieces:
            reader.feed(piece)
            assert reader.buffered <= sum(map(len, pieces))
    except resp.RespError:
        pass  # the right answer to most bytes


def test_a_command_cannot_become_two() -> None:
    sent = resp.command(["AUTH", "a\r\nFLUSHALL ü"])
    assert sent == b"*2\r\n$4\r\nAUTH\r\n$14\r\na\r\nFLUSHALL \xc3\xbc\r\n"


# --- HTTP -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "no whole HTTP answer"), (b"SSH-2.0-x\r\n", "no whole HTTP answer"),
        (http("x", "302 Found"), "status 302"), (http("x", "502 Bad Gateway"), "status 502"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", "no whole HTTP answer"),
        (http("<response/>")[:-7], "no whole HTTP answer"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "no whole HTTP answer"),
    ],
)  # fmt: skip
def test_an_http_answer_that_is_none(data: bytes, why: str) -> None:
    with pytest.raises(web.WebError, match=why):
        web._body("http://x", data)


def test_an_http_answer_in_chunks() -> None:
    assert web._body("http://x", http("<response/>")) == b"<response/>"
