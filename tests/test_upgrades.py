"""Records and rows of schema version 1, frozen when they were first released: every later version must read them.

Never change a file in ``fixtures/records-v1`` to make a test pass: what is in Kafka can't be changed either.
"""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Any, get_args

import orjson
import pytest

from callyard import schema_command
from callyard.records import Record, RecordError, parse
from callyard.settings import KafkaSettings, PolicySettings
from callyard.topics import topics
from streams.partition import Input, Partition
from streams.policy import Policy
from streams.rows import RegistrationState, StayState, decode, encode, split_key
from tests.support.events import alive, registered

FROZEN = Path(__file__).parent / "fixtures" / "records-v1"
LINES = [
    (topic, line) for topic in schema_command.TOPICS for line in (FROZEN / f"{topic}.jsonl").read_bytes().splitlines()
]
ROWS = [orjson.loads(line) for line in (FROZEN / "table.jsonl").read_bytes().splitlines()]


def is_within(part: Any, whole: Any) -> bool:
    """Whether all that ``part`` says, ``whole`` says as well."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(key in whole and is_within(part[key], whole[key]) for key in part)
    if isinstance(part, list):
        return isinstance(whole, list) and len(part) == len(whole) and all(map(is_within, part, whole))
    return bool(part == whole)


@pytest.mark.parametrize(("topic", "line"), LINES, ids=[f"{topic}-{n}" for n, (topic, _) in enumerate(LINES)])
def test_every_record_of_version_1_is_read_and_loses_nothing(topic: str, line: bytes) -> None:
    adapter, _ = schema_command.TOPICS[topic]
    again = json.loads(parse(adapter, line).encode())
    assert is_within(json.loads(line), again)


@pytest.mark.parametrize("topic", schema_command.TOPICS)
def test_a_newer_version_is_refused_and_says_what_to_do(topic: str) -> None:
    adapter, _ = schema_command.TOPICS[topic]
    for line in [line for name, line in LINES if name == topic]:
        newer = orjson.dumps({**orjson.loads(line), "schema_version": 2})
        with pytest.raises(RecordError, match=r"schema version 2 is newer than this program's \(1\): upgrade this"):
            parse(adapter, newer)


def test_every_type_and_every_named_value_has_a_frozen_sample() -> None:
    # Who adds one freezes a sample of it, too: from the next release on it is in somebody's Kafka.
    seen: dict[str, list[dict[str, Any]]] = {}
    for _, line in LINES:
        seen.setdefault(json.loads(line)["type"], []).append(json.loads(line))
    for _, models in schema_command.TOPICS.values():
        for model in models:
            samples = seen.get(model.model_fields["type"].default, [])
            assert samples, model
            for name, values in named_values(model).items():
                if name not in {"source", "caller_form"}:  # the same in several records, tried in one
                    missing = values - {sample.get(name) for sample in samples}
                    assert not missing, (model, name, missing)


def named_values(model: type[Record]) -> dict[str, set[str]]:
    found = {}
    for name, field in model.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, Enum):
                found[name] = {str(value.value) for value in kind}
    return found


def restored(rows: list[dict[str, Any]]) -> Partition:
    partition = Partition(0, topics(KafkaSettings(partitions=1)), Policy.of(PolicySettings()))
    partition.load([(row["key"].encode(), orjson.dumps(row["value"])) for row in rows])
    return partition


def test_the_table_of_version_1_is_taken_over_and_gone_on_with() -> None:
    partition = restored(ROWS)
    names = topics(KafkaSettings(partitions=1))
    assert sorted(partition.desks) == ["49123", "49124", "49125", "49126"]
    for desk in partition.desks.values():
        desk.check()
    now = 1763912400000
    offset = partition.applied[names.registrations.name] + 1
    event = registered("new", node="node-3")
    group = partition.plan([Input(names.registrations.name, offset, now, b"49123", event.encode())])
    dialled = {json.loads(o.value)["call_id"] for o in group.outputs if o.topic == names.dials.name}
    assert dialled == {"gw-1/1", "gw-1/3"}, "who waits in the old table is dialled by the new program"
    offset = partition.applied[names.calls.name] + 1
    event_ = alive("2", conference="49124")
    group = partition.plan([Input(names.calls.name, offset, now, b"49124", event_.encode())])
    assert list(group.facts.outcomes) == [("call-alive", "stale")], "who has left is known to have left"


def test_every_row_of_version_1_is_written_as_it_was_read() -> None:
    for row in ROWS:
        kind = split_key(row["key"].encode())[2]
        if kind != "@":
            assert is_within(row["value"], orjson.loads(encode(decode(kind, orjson.dumps(row["value"])))))


def test_an_old_worker_takes_over_what_a_newer_one_wrote_with_more_fields() -> None:
    # During a roll-out partitions go to and fro between both.
    newer = [{**row, "value": {**row["value"], "invented_later": {"by": [1, "release"]}}} for row in ROWS]
    partition, plain = restored(newer), restored(ROWS)
    assert partition.applied == plain.applied
    assert partition.outbox == plain.outbox
    for conference, desk in plain.desks.items():
        assert partition.desks[conference].stays == desk.stays
        assert partition.desks[conference].registrations == desk.registrations


def test_the_states_of_a_row_are_those_of_version_1() -> None:
    # An old worker can't take over a row in a state that it doesn't know: it would end, again and again. A release that
    # adds one needs a release before it that reads it (docs/upgrades.md).
    assert {state.value for state in StayState} == {"parked", "dialing", "connected", "lapsed", "gone", "left"}
    assert {state.value for state in RegistrationState} == {"live", "lapsed", "lost", "ended"}
