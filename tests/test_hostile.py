"""Hostile input at the pure edges: it is read, or set aside with a reason; nothing else ever happens."""

from __future__ import annotations

import asyncio
import itertools
import json
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr, TypeAdapter

from agents import ami
from agents.calls import Phase
from agents.dials import Dials
from agents.inbox import Inbox
from agents.messages import (
    Channel,
    DialBegan,
    DialEnded,
    HungUp,
    Parked,
    Unreadable,
    read_channel,
    read_event,
    read_parked,
)
from agents.mirror import Mirror, Redirect, Snapshot
from callyard.nodes import AllowedNodes
from callyard.records import CALLS, DIALS, REGISTRATIONS, TIMERS, Record, RecordError, parse
from callyard.settings import AmiSettings, KafkaSettings, NodeSettings, PolicySettings
from callyard.topics import partition_of, topics
from fs_hooks import esl
from fs_hooks.conferences import Conferences, EventError, Opened, SnapshotError
from fs_hooks.publisher import Printer, Publisher
from streams.partition import Input, Partition
from streams.policy import Policy
from tests.support import events, hostile
from tests.support.esl import recording

ADAPTERS: dict[str, TypeAdapter[Any]] = {
    "registrations": REGISTRATIONS, "calls": CALLS, "timers": TIMERS, "dials": DIALS,
}  # fmt: skip
quick = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


# --- records ----------------------------------------------------------------------------------------------------------


def _read(adapter: TypeAdapter[Any], value: bytes) -> bool:
    """Whether it is a record; fails where it is one that can't be written and read again."""
    try:
        record = parse(adapter, value)
    except RecordError:
        return False
    assert parse(adapter, record.encode()) == record
    return True


@pytest.mark.parametrize("topic", ADAPTERS)
def test_each_record_of_the_corpus_is_read_or_refused(topic: str) -> None:
    read = [name for name, value in hostile.spoiled_records(topic) if _read(ADAPTERS[topic], value)]
    assert read, "some are sound, for example with an unknown field"
    # A number, a name of what is dialled, who is called: nothing hostile is ever in one of these.
    narrow = ("conference", "gateway_id", "call_id", "sip_uri", "node_id", "instance_id", "type")
    assert [name for name in read if name.split(":")[0].partition(".")[2] in narrow] == []


@pytest.mark.parametrize("topic", ADAPTERS)
@given(st.data())
@quick
def test_a_record_is_read_or_refused(topic: str, given_data: st.DataObject) -> None:
    _read(ADAPTERS[topic], given_data.draw(hostile.records(topic)))


NAMES = topics(KafkaSettings(partitions=3))
NUMBER = partition_of(events.CONFERENCE.encode(), 3)
INPUTS = {"registrations": NAMES.registrations.name, "calls": NAMES.calls.name, "timers": NAMES.timers.name}


@st.composite
def inputs(draw: st.DrawFn) -> list[Input]:
    offsets = dict.fromkeys(INPUTS, 0)
    found = []
    for topic in draw(st.lists(st.sampled_from(sorted(INPUTS)), min_size=1, max_size=12)):
        sound = st.sampled_from(hostile.EXAMPLES[topic]).map(lambda record: record.encode())
        value = draw(st.none() | sound | hostile.records(topic))
        key = draw(st.just(events.CONFERENCE.encode()) | st.none() | hostile.data)
        broker_ms = draw(st.integers(0, 2**52) | st.just(1_795_000_000_000))
        found.append(Input(INPUTS[topic], offsets[topic], broker_ms, key, value))
        offsets[topic] += 1
    return found


@given(inputs())
@quick
def test_a_partition_takes_whatever_comes_and_can_be_loaded_again(given_inputs: list[Input]) -> None:
    policy = Policy.of(PolicySettings())
    partition = Partition(NUMBER, NAMES, policy)
    partition.begin(1, "w")
    group = partition.plan(given_inputs)
    assert group.consumed == len(given_inputs) == sum(group.facts.outcomes.values())
    rejected = [output for output in group.outputs if output.topic == NAMES.rejected.name]
    assert len(rejected) == group.facts.outcomes["unreadable", "rejected"]
    for output in rejected:
        assert [name for name, _ in output.headers] == ["callyard-source", "callyard-position", "callyard-reason"]
    again = Partition(NUMBER, NAMES, policy)
    again.load([(key, value) for key, value in group.rows.items() if value is not None])
    assert (again.applied, again.outbox) == (partition.applied, group.outputs)
    assert {number: desk.row for number, desk in again.desks.items()} == {
        number: desk.row for number, desk in partition.desks.items()
    }


# --- the agent --------------------------------------------------------------------------------------------------------


class Recorder(asyncio.Transport):
    """Where a session's bytes go."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def close(self) -> None:
        pass


def _actions(written: bytes) -> list[dict[str, str]]:
    """What Asterisk reads: one action each, up to its empty line."""
    assert written.endswith(b"\r\n\r\n") or not written
    assert b"\0" not in written
    lines = written.replace(b"\r\n", b"")
    assert b"\r" not in lines
    assert b"\n" not in lines
    assert all(len(line) + 2 <= ami.MAX_LINE_BYTES for line in written.split(b"\r\n"))
    actions = []
    for block in written.decode().split("\r\n\r\n")[:-1]:
        pairs = [line.split(": ", 1) for line in block.split("\r\n")]
        assert len({name for name, _ in pairs}) == len(pairs), "each header once"
        actions.append(dict(pairs))
    return actions


DIALS = cast("Dials", SimpleNamespace(_nodes=AllowedNodes("any")))
"""All that writing an action takes of it: whom callers may be sent to."""


async def _carry_out(mirror: Mirror, value: bytes) -> tuple[str | None, list[dict[str, str]]]:
    """Take a record of ``callyard.dials`` as the agent does: what was allowed (the channel), and what was written."""
    inbox = Inbox(events.GATEWAY)
    try:
        inbox.take(value, 0, 1)
    except RecordError:
        return None, []
    session = ami.Session(AmiSettings(secret=SecretStr("s3cret")))
    protocol, transport = ami._Protocol(session), Recorder()
    protocol.connection_made(transport)
    channel = None
    for held in inbox.drain():
        verdict = mirror.judge(held.instruction)
        if isinstance(verdict, Redirect):
            channel = verdict.channel
            try:
                Dials._write(DIALS, session, held.instruction, verdict)
            except (ami.UnsafeValueError, RecordError):
                assert transport.written == b"", "all of it or nothing"
        else:
            for record in verdict.records:
                assert parse(CALLS, record.encode()) == record
    return channel, _actions(transport.written)


@given(st.lists(hostile.manager_headers(), max_size=4), st.booleans(), hostile.records("dials") | st.just(b""))
@quick
def test_nothing_hostile_reaches_an_action(messages: list[dict[str, Any]], listed: bool, value: bytes) -> None:
    mirror = Mirror(events.GATEWAY)
    records = []
    for headers in messages:
        event = read_event(headers)
        if isinstance(event, (Parked, DialBegan, DialEnded, HungUp)):
            records += mirror.apply(event, 1_795_000_000_000)
    if listed:
        entries = [read_channel(headers) for headers in messages]
        lot = [read_parked(headers) for headers in messages]
        parked = {entry.uniqueid: entry for entry in lot if isinstance(entry, Parked)}
        channels = tuple(entry for entry in entries if isinstance(entry, Channel))
        records += mirror.reconcile(Snapshot(parked, channels), renewed=True, now_ms=1_795_000_000_000)
    for record in [*records, *mirror.announce()]:
        assert parse(CALLS, record.encode()) == record
    # A hostile instruction, and the sound one to this call, whatever its channel is named.
    for given_value in (value, *(_instruction(mirror, uniqueid) for uniqueid in mirror.calls)):
        _check(*asyncio.run(_carry_out(mirror, given_value)))


def _check(channel: str | None, actions: list[dict[str, str]]) -> None:
    """Nothing was written, or what one instruction is: Setvar, Setvar, Redirect, and nothing hostile in them."""
    if not actions:
        return
    first, second, third = actions
    dial = second["Value"]
    assert [action["Action"] for action in actions] == ["Setvar", "Setvar", "Redirect"]
    assert [action["Channel"] for action in actions] == [channel] * 3
    kinds = {("CALLYARD_URI", "callyard-dial"), ("CALLYARD_NOTICE", "callyard-tell")}
    assert (first["Variable"], third["Context"]) in kinds
    assert (second["Variable"], third["Exten"], third["Priority"]) == ("CALLYARD_DIAL", dial, "1")
    assert not set(first["Value"] + dial) & set("${}[](),&|\"'\\<> ")
    assert {name for action in actions for name in action} == {
        "Action", "ActionID", "Channel", "Variable", "Value", "Context", "Exten", "Priority",
    }  # fmt: skip


def _instruction(mirror: Mirror, uniqueid: str) -> bytes:
    call = mirror.calls[uniqueid]
    return hostile.instruction(
        call_id=f"{events.GATEWAY}/{uniqueid}", conference=call.conference, stay=call.stay, attempt=call.mark + 1
    ).encode()


def _one_parked(channel: str) -> Mirror:
    mirror = Mirror(events.GATEWAY)
    headers = {
        "Event": "ParkedCall", "ParkeeChannel": channel, "ParkeeUniqueid": "1.0",
        "ParkeeChanVariable": ["CALLYARD_CONFERENCE=49123", "CALLYARD_STAY=1", "CALLYARD_STATE=parked"],
    }  # fmt: skip
    event = read_event(headers)
    assert isinstance(event, Parked)
    mirror.apply(event)
    assert mirror.calls["1.0"].phase is Phase.PARKED
    return mirror


@pytest.mark.parametrize(
    ("sound", "context"), [(hostile.instruction(), "callyard-dial"), (hostile.notice(), "callyard-tell")]
)
def test_a_sound_instruction_is_three_actions(sound: Record, context: str) -> None:
    # Otherwise the properties could hold because nothing is ever written.
    channel, actions = asyncio.run(_carry_out(_one_parked("PJSIP/x-1"), sound.encode()))
    assert channel == "PJSIP/x-1"
    assert actions[2]["Context"] == context
    assert [action["Action"] for action in actions] == ["Setvar", "Setvar", "Redirect"]
    _check(channel, actions)


@pytest.mark.parametrize("name", [name for name in hostile.TEXTS if name != "empty"])
def test_a_channel_of_a_hostile_name_is_written_whole_or_not_at_all(name: str) -> None:
    channel = hostile.TEXTS[name]
    _check(*asyncio.run(_carry_out(_one_parked(channel), hostile.instruction().encode())))


@pytest.mark.parametrize("name", [name for name in hostile.TEXTS if name not in ("digits", "negative")])
@pytest.mark.parametrize(
    "form", ["{}", "sip:{}@192.0.2.1", "sip:49123@{}", "sip:49123@192.0.2.1:{}", "sip:49123@192.0.2.1;transport={}"]
)
def test_a_hostile_uri_is_never_written(form: str, name: str) -> None:
    uri = json.dumps(form.format(hostile.TEXTS[name]))
    value = hostile.spoiled(hostile.instruction(), "sip_uri", uri)
    assert asyncio.run(_carry_out(_one_parked("PJSIP/x-1"), value)) == (None, [])


@pytest.mark.parametrize("attempt", [100_000, 100_001, 999_999, 1_000_000, 2**53 - 1])
@pytest.mark.parametrize("state", ["parked", "asking", "dialing", "over"])
async def test_an_attempt_that_no_gateway_can_report_is_refused(attempt: int, state: str) -> None:
    mirror = Mirror(events.GATEWAY)
    entry = read_channel({
        "Event": "Status", "Channel": "PJSIP/x-1", "Uniqueid": "1.0", "BridgeID": "",
        "Variable": ["CALLYARD_CONFERENCE=49123", "CALLYARD_STAY=1", f"CALLYARD_STATE={state}", "CALLYARD_MARK=1x1"],
    })  # fmt: skip
    assert isinstance(entry, Channel)
    mirror.reconcile(Snapshot({}, (entry,)), renewed=True)
    channel, actions = await _carry_out(mirror, hostile.instruction(attempt=attempt).encode())
    assert (channel, actions) == (None, [])
    channel, actions = await _carry_out(_one_parked("PJSIP/x-1"), hostile.instruction(attempt=attempt).encode())
    assert len(actions) == (3 if attempt <= 100_000 else 0)


@pytest.mark.parametrize("mark", ["1x100000", "1x100001", "1x999999"])
def test_a_mark_that_no_record_can_carry_is_set_aside(mark: str) -> None:
    mirror = Mirror(events.GATEWAY)
    variables = ["CALLYARD_CONFERENCE=49123", "CALLYARD_STAY=1", "CALLYARD_STATE=dialing", f"CALLYARD_MARK={mark}"]
    event = read_event({"Event": "DialBegin", "Channel": "PJSIP/x-1", "Uniqueid": "1.0", "ChanVariable": variables})
    if mark == "1x100000":
        assert isinstance(event, DialBegan)
        assert [record.type for record in mirror.apply(event)] == ["call-alive", "dial-started"]
    else:
        assert isinstance(event, Unreadable)
        assert "CALLYARD_MARK" in event.reason


@given(hostile.text, hostile.text)
@quick
def test_a_line_is_written_whole_or_not_at_all(name: str, value: str) -> None:
    try:
        ami.check_line(name, value)
    except ami.UnsafeValueError:
        return
    line = f"{name}: {value}"
    assert len(line.encode()) + 2 <= ami.MAX_LINE_BYTES
    assert not set(line) & set("\r\n\0")


# --- the hook ---------------------------------------------------------------------------------------------------------

GOOD = hostile.plain_event(Conference_Name="41111", Conference_Unique_ID="good-1")


def _fed(pieces: list[bytes]) -> tuple[list[Opened], bool]:
    """What the hook makes of a connection's bytes: the conferences that open, and whether the connection held."""
    reader, conferences = esl.Reader(), Conferences()
    publisher = Publisher(Printer(), NodeSettings.model_validate({
        "id": "node-1", "sip_uri": "sip:{conference}@192.0.2.7:5060;transport=tcp",
    }))  # fmt: skip
    opened, held = [], True
    for piece in pieces:
        try:
            frames = reader.feed(piece)
        except esl.RemoteProtocolError as error:
            frames, held = error.frames, False
        assert reader.buffered <= esl.MAX_HEAD_BYTES + esl.MAX_LINE_BYTES + esl.MAX_BODY_BYTES + len(piece)
        for frame in frames:
            if isinstance(frame, esl.Event):
                try:
                    changes = conferences.event(frame)
                except EventError:
                    continue
                for change in changes:
                    record = publisher._record(change)
                    assert parse(REGISTRATIONS, record.encode()) == record
                    opened += [change] if isinstance(change, Opened) else []
        if not held:
            break
    return opened, held


def _split(data: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in itertools.pairwise(at)]


@given(st.lists(hostile.frames(), max_size=6), st.lists(st.integers(0, 2**20), max_size=6))
@quick
def test_any_bytes_in_any_split_read_alike(pieces: list[bytes], cuts: list[int]) -> None:
    data = b"".join(pieces) + GOOD
    assert _fed(_split(data, cuts)) == _fed([data])


@pytest.mark.parametrize("name", hostile.READABLE_FRAMES)
def test_after_a_whole_frame_the_next_one_is_read(name: str) -> None:
    opened, held = _fed([hostile.READABLE_FRAMES[name], GOOD])
    assert held
    assert opened[-1].conference.instance_id == "good-1"
    assert all(change.conference.number in ("49123", "41111") for change in opened)


@pytest.mark.parametrize("name", [name for name in hostile.BREAKING_FRAMES if "nobody asked" not in name])
def test_where_the_position_is_lost_the_connection_ends(name: str) -> None:
    with pytest.raises(esl.RemoteProtocolError):
        esl.Reader().feed(hostile.BREAKING_FRAMES[name] + b"\n\n")


@given(st.integers(0, 2**20), hostile.data)
@quick
def test_a_recording_that_is_torn_anywhere_is_read_up_to_there(at: int, rubbish: bytes) -> None:
    whole = recording("lifecycle-json")
    _fed([whole[: at % len(whole)], rubbish])


@given(
    st.sampled_from(sorted(hostile.VALUES.values())) | hostile.text.map(json.dumps),
    st.sampled_from(["conference_name", "conference_uuid", "run_time", "destruct", "members", "whole", "list"]),
)
@quick
def test_a_snapshot_is_read_or_refused(value: str, where: str) -> None:
    fields = {"conference_name": '"49123"', "conference_uuid": '"a-1"', "run_time": "3", where: value}
    entry = "{" + ",".join(f'"{name}":{raw}' for name, raw in fields.items()) + "}"
    answer = {"whole": value, "list": f"[{value}]"}.get(where, f"[{entry}]")
    conferences = Conferences()
    try:
        changes = conferences.snapshot(conferences.ask(), answer, 1_795_000_000_000)
    except SnapshotError:
        assert conferences.live == {}
        return
    for change in changes:
        assert change.conference.number == "49123"
