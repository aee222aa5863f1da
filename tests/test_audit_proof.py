"""Chains, seals and snapshots as lists: whatever is removed, changed, swapped or appended is found."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka import TopicPartition
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from callyard.records import InputRecord, RecordError
from callyard.settings import AuditSettings, KafkaSettings, Loaded, SettingsError, StreamSettings
from streams.audit import checkpoints
from streams.audit.checkpoints import CheckpointError
from streams.audit.findings import Findings
from streams.audit.invariants import Invariants
from streams.audit.seal import Range, Seal
from streams.audit.trail import Trail
from streams.audit.verify import Seals
from streams.worker import check_snapshots
from tests.support.events import connected, failed, left, parked, registered, started, timer, unregistered
from tests.test_partition import Broker, Worker, histories, history

TOPIC = "callyard.journal"


@dataclasses.dataclass(frozen=True)
class Record:
    """What an audit looks at of a record in Kafka."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes
    topic: str = TOPIC
    partition: int = 0


def journal(broker: Broker) -> list[Record]:
    said = [output for output in broker.delivered if output.topic == TOPIC]
    return [Record(offset, 1_000 + offset, output.key, output.value) for offset, output in enumerate(said)]


def renumbered(records: Sequence[Record]) -> list[Record]:
    """As a broker would number them."""
    return [dataclasses.replace(record, offset=offset) for offset, record in enumerate(records)]


def sealed(records: Sequence[Record], first: int, end: int) -> Range:
    seal = Seal(0, first)
    for record in records[first:end]:
        seal.take(record.offset, record.timestamp, record.key, record.value)
    return seal.close(end)


def judge(records: Sequence[Record], ranges: Sequence[Range] = ()) -> Findings:
    findings = Findings()
    trail, invariants = Trail(TOPIC, 0, findings), Invariants(findings)
    seals = Seals(TopicPartition(TOPIC, 0), ranges, findings)
    for record in records:
        seals.take(record)  # type: ignore[arg-type]  # all that it looks at
        try:
            entry = trail.take(record.offset, record.value)
        except RecordError as error:
            findings.add("unreadable", str(record.offset), str(error))
            continue
        if entry is not None:
            invariants.take(0, f"{TOPIC}-0@{record.offset}", entry)
    invariants.finish()
    seals.finish(0, Counter())
    return findings


steps = histories.filter(lambda events: len(events) >= 4)


@settings(max_examples=60, deadline=None)
@given(steps, st.lists(st.integers(0, 12), max_size=4), st.data())
def test_what_was_altered_is_found(
    events: list[tuple[InputRecord, int]], kills: list[int], data: st.DataObject
) -> None:
    broker = history(events)
    for effects in kills:
        try:
            Worker(broker, effects).run(3)
        except Exception as killed:  # noqa: BLE001 - killed by its countdown
            assert type(killed).__name__ == "KilledError"  # noqa: PT017 - of another module's making
    Worker(broker, 1_000_000).run(3)
    records = journal(broker)
    middle = data.draw(st.integers(0, len(records)))
    ranges = [sealed(records, 0, middle), sealed(records, middle, len(records))]
    whole = judge(records, ranges)
    assert not whole.counts["sealed"]
    assert not whole.counts["chain"], whole.kept
    assert not whole.counts["void"], whole.kept

    at = data.draw(st.integers(0, len(records) - 1))
    altered = list(records)
    how = data.draw(st.sampled_from(["removed", "changed", "swapped", "appended", "cut", "conference", "time"]))
    if how == "removed":
        del altered[at]
    elif how == "changed":
        altered[at] = dataclasses.replace(altered[at], value=altered[at].value[:-1] + b" ")
    elif how == "swapped":
        other = data.draw(st.integers(0, len(records) - 1))
        assume(altered[at].value != altered[other].value)
        altered[at], altered[other] = altered[other], altered[at]
    elif how == "appended":
        altered.insert(at, altered[data.draw(st.integers(0, len(records) - 1))])
        # What comes after the last checkpoint isn't sealed yet.
        assume([record.value for record in altered[:-1]] != [record.value for record in records])
    elif how == "cut":
        altered = altered[:at]
    elif how == "time":
        altered[at] = dataclasses.replace(altered[at], timestamp=altered[at].timestamp - 1)
    else:
        keys = {record.key for record in records if record.key}
        gone = data.draw(st.sampled_from(sorted(keys)))
        altered = [record for record in records if record.key != gone]
    assert judge(renumbered(altered), ranges).counts["sealed"], how


def test_a_partition_that_was_emptied_before_retention_could_is_no_expiry() -> None:
    _, records = run(CALL)
    ranges = [sealed(records, 0, len(records))]
    for kept_since_ms, expired in ((records[0].timestamp + 1, 0), (records[-1].timestamp + 1, 1)):
        findings, counts = Findings(), Counter[str]()
        Seals(TopicPartition(TOPIC, 0), ranges, findings).finish(kept_since_ms, counts)
        assert (counts["expired"], findings.counts["sealed"]) == (expired, 1 - expired)


def run(events: list[tuple[InputRecord, int]]) -> tuple[Worker, list[Record]]:
    broker = history(events)
    worker = Worker(broker, 1_000_000)
    worker.run(1)
    return worker, journal(broker)


CALL = [(registered(), 0), (parked(), 5), (started(), 5), (connected(), 5), (left(reason="conference-left"), 9_000)]


@pytest.mark.parametrize(
    ("change", "kind", "text"),
    [
        (lambda e: e[:3] + e[4:], "chain", "decisions 2 to 2 are missing"),
        (lambda e: [*e[:3], e[4], e[3], *e[5:]], "chain", "decisions 2 to 2 are missing"),
        (lambda e: [*e[:4], edited(e[4], why="nobody knows"), *e[5:]], "chain", "does not name the hash"),
        (lambda e: [*e, edited(e[-1], version=6)], "chain", "does not name the hash"),
        (lambda e: [*e, edited(e[-1], version=3)], "chain", "version 3 comes after 5"),
        (lambda e: [*e, edited(e[-1], version=6, epoch=0)], "void", "epoch 0 spoke after epoch 1"),
        (lambda e: [*e, at_offset(e[-1], 0)], "position", "is decided after"),
    ],
    ids=["removed", "swapped", "changed", "appended", "copied", "old epoch", "twice"],
)  # fmt: skip
def test_a_chain_tells_by_itself_what_is_wrong(change: Callable[[Any], Any], kind: str, text: str) -> None:
    _, records = run(CALL)
    assert not judge(records).total
    findings = judge(renumbered(change(records)))
    assert any(one.kind == kind and text in one.text for one in findings.kept), findings.kept


def at_offset(record: Record, offset: int) -> Record:
    content = orjson.loads(record.value)
    return edited(record, version=content["version"] + 1, position={**content["position"], "offset": offset})


def edited(record: Record, **fields: Any) -> Record:
    return dataclasses.replace(record, value=orjson.dumps({**orjson.loads(record.value), **fields}))


def audited(events: list[tuple[InputRecord, int]]) -> tuple[Invariants, Findings]:
    findings = Findings()
    trail, invariants = Trail(TOPIC, 0, findings), Invariants(findings)
    for record in run(events)[1]:
        entry = trail.take(record.offset, record.value)
        if entry is not None:
            invariants.take(0, "", entry)
    return invariants, findings


def test_the_figures_of_a_call() -> None:
    found, findings = audited([(parked(), 0), (registered(), 2_000), *[(e, t) for e, t in CALL[2:]]])
    assert found.finish() == {}
    assert (found.stays, dict(found.ended), found.dials) == (1, {"conference-left": 1}, 1)
    assert dict(found.outcomes) == {"connected": 1}
    assert found.waited.spread()["max"] == 2_010
    assert found.waited_beside.spread()["max"] == 10
    assert not findings.total


def test_each_instruction_has_an_outcome_whatever_becomes_of_it() -> None:
    events = [
        (registered(), 0), (parked("1"), 0), (failed("1"), 5), (parked("2"), 0), (left("2"), 5), (parked("3"), 0),
        (timer(), 11_000), (parked("4", conference="45555"), 0),
    ]  # fmt: skip
    found, findings = audited(events)
    assert dict(found.failures) == {"not-found": 1}
    assert found.outcomes["failed"] == 1
    assert found.outcomes["caller hangup"] == 1
    assert found.outcomes["no outcome in time"] >= 1
    assert dict(found.finish())["parked"] == 1
    assert not findings.total


def broken(field: str, value: Any, event: str = "decision") -> Callable[[list[dict[str, Any]]], None]:
    def change(entries: list[dict[str, Any]]) -> None:
        for row in (row for entry in entries for row in entry.get("changes", ()) if row.get("set") == event):
            row[field] = value

    return change


def test_what_must_not_be_is_found() -> None:
    """Rows that say otherwise than the stream ever would: hashes apart, only the invariants can tell."""
    entries = [orjson.loads(r.value) for r in run(CALL)[1] if b'"decision"' in r.value]

    def kinds(change: Callable[[list[dict[str, Any]]], None]) -> set[str]:
        changed = orjson.loads(orjson.dumps(entries))
        change(changed)
        findings = Findings()
        invariants = Invariants(findings)
        for entry in changed:
            invariants.take(0, "", entry)
        invariants.finish()
        return set(findings.counts)

    assert kinds(lambda _: None) == set()
    assert kinds(broken("state", "lost", "registration")) == {"not registered"}
    assert kinds(broken("until_ms", 1, "registration")) == {"not registered"}

    def other_node(changed: list[dict[str, Any]]) -> None:
        for one in (one for entry in changed for one in entry["instructions"]):
            one["node_id"] = "node-9"

    assert kinds(other_node) == {"not registered"}

    def never_ends(changed: list[dict[str, Any]]) -> None:
        changed[-1]["changes"] = []
        changed[-1]["now_ms"] += 10_000_000

    assert kinds(never_ends) == {"no end"}

    def twice(changed: list[dict[str, Any]]) -> None:
        first = next(entry for entry in changed if entry["instructions"])
        again = orjson.loads(orjson.dumps(first))
        again.update(event_type="conference-registered", outcome="renewed", said={})
        again["instructions"][0]["attempt"] = 2
        for row in again["changes"]:
            if row.get("set") == "stay":
                row["attempt"] = 2
        changed.insert(changed.index(first) + 1, again)

    assert "dialled twice" in kinds(twice)

    def back(changed: list[dict[str, Any]]) -> None:
        for row in changed[-2]["changes"]:
            if row.get("set") == "stay":
                row["attempt"] = 0

    assert "attempts" in kinds(back)

    def unasked(changed: list[dict[str, Any]]) -> None:
        changed[-2]["said"]["attempt"] = 7

    assert kinds(unasked) == {"outcome"}


# --- snapshots ------------------------------------------------------------------------------------------------------


def test_a_desk_is_journalled_whole_before_it_changes_after_an_hour() -> None:
    hour = 3_600_000
    quiet = [(registered(), 0), (parked(), 5)]
    assert not any(b"desk-snapshot" in r.value for r in run([*quiet, (registered(), hour - 6)])[1])
    worker, records = run([*quiet, (registered(), hour), (registered(), 5), (unregistered(), hour - 6)])
    [taken] = [orjson.loads(r.value) for r in records if b'"desk-snapshot"' in r.value]
    before = [orjson.loads(r.value) for r in records if b'"decision"' in r.value]
    assert taken["version"] == 2
    assert {row["set"] for row in taken["rows"]} == {"registration", "stay", "desk"}
    assert taken["previous_hash"] != before[2]["previous_hash"], "the snapshot is a link of the chain"
    assert not judge(records).counts["chain"]
    assert worker.partition.desks["49123"].row.snapshot_ms == 1_000_000 + 5 + hour
    removed = [r for r in records if b"desk-snapshot" not in r.value]
    assert judge(renumbered(removed)).counts["chain"], "a snapshot cannot be taken away"
    declared = [r for r in records if b"policy-declared" in r.value]
    assert len(declared) == 2, "the policy is declared again, so that no replay misses it"


def test_a_journal_that_is_not_kept_for_two_snapshots_is_refused() -> None:
    def loaded(days: float, seconds: float) -> Loaded:
        return Loaded({KafkaSettings: KafkaSettings(retention_days=days),
                       StreamSettings: StreamSettings(snapshot_seconds=seconds)})  # fmt: skip

    check_snapshots(loaded(2, 86_400))
    with pytest.raises(SettingsError, match="CALLYARD_STREAM_SNAPSHOT_SECONDS"):
        check_snapshots(loaded(1.9, 86_400))


# --- checkpoints ----------------------------------------------------------------------------------------------------


def audit_settings(key: Ed25519PrivateKey) -> AuditSettings:
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return AuditSettings(signing_key=SecretStr(pem.decode()))


def test_checkpoints_follow_one_another_and_cannot_be_changed(tmp_path: Path) -> None:
    key = checkpoints.private_key(audit_settings(Ed25519PrivateKey.generate()))
    public = key.public_key()
    _, records = run(CALL)
    last = None
    for first, end in ((0, 3), (3, 5), (5, 7)):
        checkpoints.write(tmp_path, key, TOPIC, 1_000 + end, [sealed(records, first, end)], last)
        last = checkpoints.read(tmp_path, public, TOPIC)[-1]
    found = checkpoints.read(tmp_path, public, TOPIC)
    assert [(one.number, one.ranges[0].begin, one.ranges[0].end) for one in found] == [(1, 0, 3), (2, 3, 5), (3, 5, 7)]
    assert not judge(records, [one.ranges[0] for one in found]).total
    with pytest.raises(CheckpointError, match="exists"):
        checkpoints.write(tmp_path, key, TOPIC, 9, [], found[1])
    with pytest.raises(CheckpointError, match="signed by key"):
        checkpoints.read(tmp_path, Ed25519PrivateKey.generate().public_key(), TOPIC)
    with pytest.raises(CheckpointError, match="not of other"):
        checkpoints.read(tmp_path, public, "other.journal")
    middle = tmp_path / "00000002.json"
    kept = middle.read_bytes()
    middle.write_bytes(kept.replace(b'"end": 5', b'"end": 6'))
    with pytest.raises(CheckpointError, match="signature is wrong"):
        checkpoints.read(tmp_path, public, TOPIC)
    middle.unlink()
    with pytest.raises(CheckpointError, match="does not follow"):
        checkpoints.read(tmp_path, public, TOPIC)
    middle.write_bytes(kept)
    (tmp_path / "00000001.json").unlink()
    assert len(checkpoints.read(tmp_path, public, TOPIC)) == 2, "old ones may be put away"


@pytest.mark.parametrize("pem", [None, "no key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----"])
def test_a_key_that_is_none_is_refused(pem: str | None) -> None:
    value = None if pem is None else SecretStr(pem)
    with pytest.raises(SettingsError, match="CALLYARD_AUDIT_SIGNING_KEY"):
        checkpoints.private_key(AuditSettings(signing_key=value))
    with pytest.raises(SettingsError, match="CALLYARD_AUDIT_VERIFY_KEY"):
        checkpoints.public_key(AuditSettings(verify_key=value))
