"""The reader without IO: each recording whole, byte by byte, split at every position; rubbish of every kind."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fs_hooks import esl
from tests.support.esl import RECORDINGS, boundaries, recording

SMALL = 60 * 1024
recordings = pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)


def read_whole(data: bytes) -> list[esl.Frame]:
    reader = esl.Reader()
    frames = reader.feed(data)
    assert reader.at_boundary
    return frames


@recordings
def test_a_recording_is_read_whole(path: Path) -> None:
    data = path.read_bytes()
    frames = read_whole(data)
    assert len(frames) == len(boundaries(data))
    assert isinstance(frames[0], esl.AuthRequest)
    assert not [frame for frame in frames if isinstance(frame, (esl.UnknownFrame, esl.Unreadable))]


@recordings
def test_a_recording_is_read_byte_by_byte(path: Path) -> None:
    data = path.read_bytes()
    reader = esl.Reader()
    ends = set(boundaries(data))
    frames: list[esl.Frame] = []
    for position in range(len(data)):
        frames += reader.feed(data[position : position + 1])
        assert reader.at_boundary == (position + 1 in ends)
    assert frames == read_whole(data)


@recordings
def test_a_recording_is_read_split_in_two_at_every_position(path: Path) -> None:
    # At a frame's end the reader is as new (shown here each time), so a split within a frame concerns that frame and
    # what follows it in the same bytes: the next frame stands for all of them. That keeps it linear, not quadratic.
    data = path.read_bytes()
    frames = read_whole(data)
    ends = boundaries(data)
    new = vars(esl.Reader())
    start = 0
    for number, end in enumerate(ends):
        end_of_next = ends[min(number + 1, len(ends) - 1)]
        positions = (
            range(start, end + 1) if len(data) <= SMALL else {start, start + 1, start + 2, end - 2, end - 1, end}
        )
        for position in positions:
            reader = esl.Reader()
            first, rest = reader.feed(data[start:position]), reader.feed(data[position:end_of_next])
            assert first + rest == frames[number : number + 2]
            assert vars(reader) == new
        start = end


@recordings
def test_bytes_after_a_recording_are_kept_for_the_next_frame(path: Path) -> None:
    data = path.read_bytes()
    reader = esl.Reader()
    assert reader.feed(data + b"Content-Type: api/respo") == read_whole(data)
    assert not reader.at_boundary
    assert reader.feed(b"nse\nContent-Length: 2\n\n[]") == [esl.ApiResponse("[]")]


def test_values_of_plain_events_are_decoded() -> None:
    created = next(frame for frame in read_whole(recording("lifecycle-plain")) if isinstance(frame, esl.Event))
    assert created.headers["Event-Subclass"] == "conference::maintenance"
    assert created.headers["FreeSWITCH-IPv6"] == "fd00::2"
    assert created.headers["Event-Date-GMT"].endswith(" GMT")


def test_both_formats_of_the_same_lifecycle_say_the_same() -> None:
    def actions(name: str) -> list[tuple[str | None, str]]:
        return [
            (frame.headers.get("Action"), frame.headers["Conference-Size"])
            for frame in read_whole(recording(name))
            if isinstance(frame, esl.Event)
        ]

    assert actions("lifecycle-plain") == actions("lifecycle-json")
    assert len(actions("lifecycle-json")) == 21


def test_an_event_with_a_body_of_its_own() -> None:
    job = next(
        frame
        for frame in read_whole(recording("all-events"))
        if isinstance(frame, esl.Event) and frame.headers["Event-Name"] == "BACKGROUND_JOB"
    )
    assert job.body == "+OK cc280248-6688-4cd9-a244-a0f72fa41c20\n"


def plain(inner: bytes) -> bytes:
    return b"Content-Length: %d\nContent-Type: text/event-plain\n\n%b" % (len(inner), inner)


def in_json(inner: bytes) -> bytes:
    return b"Content-Length: %d\nContent-Type: text/event-json\n\n%b" % (len(inner), inner)


def test_of_two_headers_of_a_name_the_first_counts_in_both_formats() -> None:
    assert read_whole(plain(b"Action: a\nAction: b\n\n")) == [esl.Event({"Action": "a"})]
    assert read_whole(in_json(b'{"Action":"a","Action":"b"}')) == [esl.Event({"Action": "a"})]


def test_empty_and_listed_values() -> None:
    assert read_whole(plain(b"A: _undef_\nB: x%20y%FF\n\n")) == [esl.Event({"A": "", "B": "x y\ufffd"})]
    assert read_whole(in_json(b'{"A":["x","y"],"_body":"b"}')) == [esl.Event({"A": "ARRAY::x|:y"}, "b")]


def test_newlines_between_frames_say_nothing() -> None:
    assert read_whole(b"\n\nContent-Type: auth/request\n\n\n") == [esl.AuthRequest()]


def test_a_notice_that_lingers_is_told_from_one_that_does_not() -> None:
    lingering = (
        b"Content-Type: text/disconnect-notice\nContent-Disposition: linger\nLinger-Time: 5\nContent-Length: 0\n\n"
    )
    assert read_whole(lingering) == [esl.DisconnectNotice("", linger=True)]
    assert read_whole(recording("auth-wrong"))[1:] == [
        esl.CommandReply("-ERR invalid", {"Content-Type": "command/reply", "Reply-Text": "-ERR invalid"}),
        esl.DisconnectNotice("Disconnected, goodbye.\nSee you at ClueCon! http://www.cluecon.com/"),
    ]


def test_a_type_that_is_not_known_becomes_a_named_frame() -> None:
    data = b"Content-Type: log/data\nContent-Length: 3\nLog-Level: 7\n\nhi\n"
    assert read_whole(data + b"Content-Type: auth/request\n\n") == [
        esl.UnknownFrame("log/data", b"hi\n"),
        esl.AuthRequest(),
    ]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (plain(b"no colon here\n\n"), "no colon"),
        (plain(b"Content-Length: 9\n\nshort"), "own Content-Length"),
        (plain(b"Content-Length: x\n\nshort"), "own Content-Length"),
        (in_json(b"{"), "not JSON"),
        (in_json(b"[1]"), "no JSON object"),
        (in_json(b'{"a":1}'), "no text"),
        (in_json(b'{"a":{"b":"c"}}'), "no text"),
        (in_json(b"[" * 100_000), "not JSON"),
        (b"Content-Type: command/reply\n\n", "without Reply-Text"),
    ],
)
def test_a_frame_that_cannot_be_read_is_named_and_the_next_one_is_sound(data: bytes, reason: str) -> None:
    bad, good = read_whole(data + b"Content-Type: auth/request\n\n")
    assert isinstance(bad, esl.Unreadable)
    assert reason in bad.reason
    assert good == esl.AuthRequest()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n", "is it FreeSWITCH"),
        (b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/html\r\n\r\n", "is it FreeSWITCH"),
        (b"\x4a\x00\x00\x00\x0a5.5.5-MariaDB\n", "is it FreeSWITCH"),
        (b"Content-Length: 5\n\nhello", "names no Content-Type"),
        (b"Content-Type: api/response\nContent-Length: five\n\n", "not one number"),
        (b"Content-Type: api/response\nContent-Length: -5\n\n", "not one number"),
        (b"Content-Type: api/response\nContent-Length: 1\nContent-Length: 2\n\n", "not one number"),
        (b"Content-Type: api/response\nContent-Length: %d\n\n" % (esl.MAX_BODY_BYTES + 1), "at most"),
        (b"X: " + b"a" * esl.MAX_LINE_BYTES, "head line has more than"),
        (b"X: aaaaaaaaaaaaaaaaaaaa\n" * (esl.MAX_HEAD_BYTES // 24 + 1), "head has more than"),
    ],
)
def test_a_stream_without_sense_is_the_peers_fault(data: bytes, says: str) -> None:
    whole = esl.Reader()
    with pytest.raises(esl.RemoteProtocolError, match="the peer broke") as caught:
        whole.feed(b"Content-Type: auth/request\n\n" + data)
    assert says in str(caught.value)
    assert caught.value.frames == [esl.AuthRequest()], "what came before it isn't lost"
    with pytest.raises(esl.LocalProtocolError, match="connect anew"):
        whole.feed(b"Content-Type: auth/request\n\n")

    with pytest.raises(esl.RemoteProtocolError, match="the peer broke"):
        feed_in_pieces(data, 1)


def feed_in_pieces(data: bytes, size: int) -> None:
    reader = esl.Reader()
    for start in range(0, len(data), size):
        reader.feed(data[start : start + size])
        assert reader.buffered <= esl.MAX_HEAD_BYTES + esl.MAX_LINE_BYTES + size


def test_a_command_is_one_line() -> None:
    assert esl.command("api", "conference", "json_list") == b"api conference json_list\n\n"


@pytest.mark.parametrize("word", ["a\nexit", "a\rexit", "a\0", "", "  "])
def test_a_command_that_would_be_two_or_none_is_our_fault(word: str) -> None:
    with pytest.raises(esl.LocalProtocolError, match="one line"):
        esl.command(word)


pieces = st.one_of(
    st.binary(max_size=200),
    st.sampled_from(
        [b"Content-Type: ", b"Content-Length: ", b"\n", b"\n\n", b"text/event-plain", b"text/event-json",
         b"api/response", b"command/reply", b"Reply-Text: +OK", b"17", b"{", b'{"a":"b"}', b"Action: x",
         b"text/disconnect-notice"]
    ),
)  # fmt: skip


@given(st.lists(pieces, max_size=60))
@settings(max_examples=500, deadline=None)
def test_whatever_comes_is_read_or_refused_and_never_more_than_it_is_held(data: list[bytes]) -> None:
    reader = esl.Reader()
    whole = copy.deepcopy(reader)
    frames: list[esl.Frame] = []
    refused = False
    for piece in data:
        try:
            frames += reader.feed(piece)
        except esl.RemoteProtocolError as error:
            frames += error.frames
            refused = True
            break
        assert reader.buffered <= sum(map(len, data))
    try:
        at_once, refused_at_once = whole.feed(b"".join(data)), False
    except esl.RemoteProtocolError as error:
        at_once, refused_at_once = error.frames, True
    assert (frames, refused) == (at_once, refused_at_once), "how bytes are split changes nothing"


@given(st.sampled_from(RECORDINGS[:1] + RECORDINGS[3:9]), st.data())
@settings(max_examples=200, deadline=None)
def test_a_damaged_recording_is_read_or_refused(path: Path, data: st.DataObject) -> None:
    damaged = bytearray(path.read_bytes()[:20_000])
    for _ in range(data.draw(st.integers(1, 5))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    reader = esl.Reader()
    try:
        frames = reader.feed(bytes(damaged))
    except esl.RemoteProtocolError as error:
        frames = error.frames
    assert reader.buffered <= len(damaged)
    assert all(isinstance(frame, esl.Frame) for frame in frames)


@given(st.binary(min_size=1, max_size=3).filter(lambda piece: b"\n" not in piece))
@settings(max_examples=50, deadline=None)
def test_an_endless_head_is_not_held(piece: bytes) -> None:
    with pytest.raises(esl.RemoteProtocolError):
        feed_in_pieces(piece * 100_000, 700)
