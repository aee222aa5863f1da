"""The contract: every record survives the wire, and nothing else is ever taken for one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from callyard import records
from callyard.records import (
    CALLS,
    DIALS,
    JOURNAL,
    REGISTRATIONS,
    TIMERS,
    CallAlive,
    CallerConnected,
    CallerForm,
    CallerLeft,
    CallerParked,
    CallState,
    ConferenceRegistered,
    ConferenceUnregistered,
    DeadlinePassed,
    DeskSnapshot,
    DialFailed,
    DialInstruction,
    DialStarted,
    EpochBegan,
    FailureReason,
    JournalEntry,
    LeftReason,
    Notice,
    PolicyDeclared,
    Position,
    Record,
    RecordError,
    Source,
    TellInstruction,
    UnregisterReason,
    parse,
    split_sip_uri,
)

URI = "sip:49123@192.0.2.7:5060;transport=tcp"
CALL: dict[str, Any] = {
    "sender": "agent:gw-1",
    "conference": "49123",
    "gateway_id": "gw-1",
    "call_id": "gw-1/1763912345.17",
    "stay": 1,
}
REGISTRATION: dict[str, Any] = {
    "sender": "hook:node-1",
    "conference": "49123",
    "source": Source.FREESWITCH,
    "instance_id": "0b4f",
    "node_id": "node-1",
}
INSTRUCTION = DialInstruction(
    gateway_id="gw-1", call_id="gw-1/1763912345.17", conference="49123", stay=1, attempt=2, sip_uri=URI,
    node_id="node-1", source=Source.FREESWITCH, instance_id="0b4f", issued_at_ms=1, deadline_ms=10_001, partition=3,
)  # fmt: skip
TELL = TellInstruction(
    gateway_id="gw-1", call_id="gw-1/1763912345.17", conference="49123", stay=1, attempt=2, notice=Notice.REMOVED,
    issued_at_ms=1, deadline_ms=10_001, partition=3,
)  # fmt: skip
EVERY: list[tuple[TypeAdapter[Any], Record]] = [
    (REGISTRATIONS, ConferenceRegistered(**REGISTRATION, sip_uri=URI, opened_at_ms=5)),
    (REGISTRATIONS, ConferenceUnregistered(**REGISTRATION, reason=UnregisterReason.LOST)),
    (CALLS, CallerParked(**CALL, caller="+49 30 xxx", caller_form=CallerForm.MASKED)),
    (CALLS, CallAlive(**CALL, state=CallState.DIALING, attempt=2)),
    (CALLS, DialStarted(**CALL, attempt=1)),
    (CALLS, CallerConnected(**CALL, attempt=1)),
    (CALLS, DialFailed(**CALL, attempt=1, reason=FailureReason.NOT_FOUND, hangup_cause=1, sip_code=404)),
    (CALLS, CallerLeft(**CALL, reason=LeftReason.HANGUP)),
    (TIMERS, DeadlinePassed(sender="stream:1", conference="49123", due_ms=7)),
    (DIALS, INSTRUCTION),
    (DIALS, TELL),
    (
        JOURNAL,
        JournalEntry(
            conference="49123",
            version=1,
            epoch=4,
            position=Position(topic="t", partition=0, offset=9),
            event_type="caller-parked",
            broker_ms=1,
            now_ms=2,
            outcome="parked",
            why="it waits",
            changes=({"set": "stay", "state": "parked"},),
            instructions=(INSTRUCTION,),
            policy_digest="d",
        ),
    ),
    (
        JOURNAL,
        DeskSnapshot(conference="49123", version=7, previous_hash="ab", epoch=4, taken_ms=9, rows=({"set": "desk"},)),
    ),
    (JOURNAL, EpochBegan(partition=0, epoch=4, worker="w", policy_digest="d")),
    (JOURNAL, PolicyDeclared(partition=0, digest="d", policy={"attempts": 5})),
]
ADAPTERS = [REGISTRATIONS, CALLS, TIMERS, DIALS, JOURNAL]
PARKED = json.loads(CallerParked(**CALL).encode())


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in PARKED.items() if key != name}


@pytest.mark.parametrize(("adapter", "record"), EVERY, ids=lambda value: getattr(value, "type", ""))
def test_every_record_survives_the_wire(adapter: TypeAdapter[Any], record: Record) -> None:
    again = parse(adapter, record.encode())
    assert again == record
    assert again.encode() == record.encode()


def test_every_record_type_is_tried_here() -> None:
    def below(model: type[Record]) -> set[type[Record]]:
        return {model}.union(*(below(found) for found in model.__subclasses__()))

    typed = {model for model in below(Record) if "type" in model.model_fields and model.__module__ == records.__name__}
    assert typed == {type(record) for _, record in EVERY}


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "tombstone"),
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"NaN", "not JSON"),
        (b"[]", "a JSON object is expected, this is list"),
        (b"17", "this is int"),
        (b"null", "this is NoneType"),
        (b"{}", "has no type and no schema_version"),
        (b'{"a":' * 600 + b"1" + b"}" * 600, ""),
        (without("schema_version"), "has no schema_version"),
        (without("type"), "has no type"),
        ({**PARKED, "schema_version": 2}, "newer than this program's (1): upgrade this program first"),
        ({**PARKED, "schema_version": 0}, "schema_version"),
        ({**PARKED, "schema_version": "1"}, "schema_version"),
        ({**PARKED, "type": "caller-abducted"}, "type 'caller-abducted' is none of this topic's record types"),
        ({**PARKED, "type": "conference-registered"}, "is none of this topic's record types"),
        ({**PARKED, "type": ["caller-parked"]}, "is none of this topic's record types"),
        ({**PARKED, "conference": "12a45"}, "conference: "),
        ({**PARKED, "conference": "1234"}, "conference: "),
        ({**PARKED, "conference": "123456789012"}, "conference: "),
        ({**PARKED, "conference": "49123\n"}, "conference: "),
        ({**PARKED, "conference": "\uff14\uff19\uff11\uff12\uff13"}, "conference: "),
        ({**PARKED, "conference": 49123}, "conference: "),
        ({**PARKED, "call_id": "gw-2/1.1"}, "must begin with gateway_id 'gw-1'"),
        ({**PARKED, "call_id": "gw-1"}, "call_id: "),
        ({**PARKED, "call_id": "gw-1/1\r\nAction: Originate"}, "call_id: "),
        ({**PARKED, "gateway_id": ""}, "gateway_id: "),
        ({**PARKED, "stay": 0}, "stay: "),
        ({**PARKED, "stay": "1"}, "stay: "),
        ({**PARKED, "stay": 1.5}, "stay: "),
        ({**PARKED, "stay": 10**30}, "stay: "),
        ({**PARKED, "parked_at_ms": -1}, "parked_at_ms: "),
        ({**PARKED, "parked_at_ms": 10**18}, "parked_at_ms: "),
        ({**PARKED, "sender_sequence": 10**25}, "sender_sequence: "),
        ({**PARKED, "caller": "9" * 201}, "caller: "),
        ({**PARKED, "caller_form": "whispered"}, "caller_form: "),
        (without("stay"), "stay: Field required"),
    ],
)  # fmt: skip
def test_what_is_no_record_says_why(value: bytes | dict[str, Any] | None, says: str) -> None:
    raw = json.dumps(value).encode() if isinstance(value, dict) else value
    with pytest.raises(RecordError) as raised:
        parse(CALLS, raw)
    assert says in str(raised.value)
    assert len(str(raised.value)) < 2000


@pytest.mark.parametrize(
    "uri",
    [
        "sip:49123@node", "sips:49123@node.example:5061", "sip:49123@[2001:db8::1]:5060;transport=udp",
        "sip:49123@192.0.2.7:65535;transport=tls", "sip:49123@a;transport=tcp",
    ],
)  # fmt: skip
def test_sip_uris_of_the_contract_are_taken(uri: str) -> None:
    assert ConferenceRegistered(**REGISTRATION, sip_uri=uri).sip_uri == uri
    user, host, port, transport = split_sip_uri(uri)
    assert uri.removeprefix("sips:").removeprefix("sip:") == (
        f"{user}@{host}" + (f":{port}" if port else "") + (f";transport={transport}" if transport else "")
    )


@pytest.mark.parametrize(
    "uri",
    [
        "", "49123@node", "tel:49123", "sip:@node", "sip:49123@", "sip:49123@node:0", "sip:49123@node:65536",
        "sip:49123@node;transport=ws", "sip:49123@node;transport=tcp\n", "sip:49123@node,PJSIP/x", "sip:49 123@node",
        "sip:49123@node&Local/s@x", "sip:${SHELL(id)}@node", "sip:49123@node|x", "sip:49123@-node", "sip:a@b@c",
    ],
)  # fmt: skip
def test_what_could_reach_a_dialplan_as_more_than_a_uri_is_refused(uri: str) -> None:
    with pytest.raises(ValidationError):
        ConferenceRegistered(**REGISTRATION, sip_uri=uri)
    with pytest.raises(RecordError):
        split_sip_uri(uri)


def test_a_number_that_could_not_be_written_again_is_refused_in_free_form_too() -> None:
    declared = json.loads(PolicyDeclared(partition=0, digest="d", policy={}).encode())
    with pytest.raises(RecordError, match="cannot be written as JSON again"):
        parse(JOURNAL, json.dumps({**declared, "policy": {"attempts": 2**64}}).encode())


def test_fields_of_a_newer_sender_are_ignored() -> None:
    again = parse(CALLS, json.dumps({**PARKED, "mood": "hopeful", "nested": {"deep": [1, {}]}}).encode())
    assert again == CallerParked(**CALL)


def test_a_record_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        CallerParked(**CALL).stay = 2  # type: ignore[misc]


def test_an_instruction_is_named_by_call_stay_and_attempt() -> None:
    assert INSTRUCTION.instruction_id == "gw-1/1763912345.17#1.2"


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(2**64) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)


@st.composite
def nearly_records(draw: st.DrawFn) -> bytes:
    """A record of any kind with some of its fields lost, replaced or added."""
    _, record = draw(st.sampled_from(EVERY))
    fields = json.loads(record.encode())
    for name in draw(st.lists(st.sampled_from(sorted(fields)), max_size=3)):
        fields.pop(name, None)
    names = st.sampled_from(sorted(fields) or ["type"]) | st.text(max_size=5)
    fields.update(draw(st.dictionaries(names, ANY_JSON, max_size=3)))
    return json.dumps(fields).encode()


RUBBISH = st.binary(max_size=200) | ANY_JSON.map(lambda value: json.dumps(value).encode()) | nearly_records()


@settings(max_examples=1000)
@given(st.sampled_from(ADAPTERS), RUBBISH)
def test_parsing_raises_nothing_but_its_own_error_and_takes_only_what_can_be_written_again(
    adapter: TypeAdapter[Any], value: bytes
) -> None:
    try:
        record = parse(adapter, value)
    except RecordError:
        return
    assert parse(adapter, record.encode()) == record


@given(st.data())
def test_a_cut_record_is_refused(data: st.DataObject) -> None:
    adapter, record = data.draw(st.sampled_from(EVERY))
    whole = record.encode()
    with pytest.raises(RecordError):
        parse(adapter, whole[: data.draw(st.integers(0, len(whole) - 1))])


def test_a_record_with_problems_without_end_has_a_short_text() -> None:
    rubbish = JournalEntry(
        conference="49123", version=1, epoch=1, position=Position(topic="t", partition=0, offset=0), event_type="t",
        broker_ms=1, now_ms=1, outcome="o", why="w", policy_digest="d",
    ).encode()[:-1] + b',"changes":[' + b",".join([b"1"] * 100_000) + b"]}"  # fmt: skip
    with pytest.raises(RecordError, match=r"changes\.4: .*; and 99995 more$") as refused:
        parse(JOURNAL, rubbish)
    assert len(str(refused.value)) < 1_000
