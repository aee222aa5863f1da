"""The order of effects: whatever a worker is killed between, each input is decided once and nothing it said is lost."""

from __future__ import annotations

import dataclasses

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from callyard.records import DIALS, JOURNAL, DeskSnapshot, EpochBegan, InputRecord, JournalEntry, digest, parse
from callyard.settings import KafkaSettings, PolicySettings
from callyard.topics import CHANGELOG_MAX_BYTES, partition_of, topics
from streams.partition import GapError, Group, Input, Output, Partition
from streams.policy import Policy
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

TOPICS = topics(KafkaSettings(partitions=1))
POLICY = dataclasses.replace(Policy.of(PolicySettings()), fan_out=3)
CONFERENCES = ("49123", "45555")


def topic_of(event: InputRecord) -> str:
    kind = event.type
    if kind.startswith("conference"):
        return TOPICS.registrations.name
    return TOPICS.timers.name if kind == "deadline-passed" else TOPICS.calls.name


class Broker:
    """What a broker keeps: inputs in their order, changelog rows, and what was delivered."""

    def __init__(self) -> None:
        self.inputs: list[Input] = []
        self.rows: dict[bytes, bytes] = {}
        self.delivered: list[Output] = []
        self._ends: dict[str, int] = {}

    def append(self, event: InputRecord, at: int) -> None:
        topic = topic_of(event)
        offset = self._ends.get(topic, 0)
        self._ends[topic] = offset + 1
        self.inputs.append(Input(topic, offset, at, event.conference.encode(), event.encode()))

    def write(self, group: Group) -> None:
        for key, value in group.rows.items():
            if value is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = value


class KilledError(Exception):
    """The worker is killed here."""


class Worker:
    """A worker that is killed when its countdown of effects ends."""

    def __init__(self, broker: Broker, effects_until_killed: int) -> None:
        self.broker = broker
        self.left = effects_until_killed
        self.partition = Partition(0, TOPICS, POLICY)
        self.partition.load(broker.rows.items())
        self.carry_out(self.partition.begin(1, "stream:test"))

    def effect(self) -> None:
        if self.left == 0:
            raise KilledError
        self.left -= 1

    def carry_out(self, group: Group) -> None:
        self.effect()
        self.broker.write(group)
        for output in group.outputs:
            self.effect()
            self.broker.delivered.append(output)

    def run(self, group_size: int) -> None:
        waiting = [i for i in self.broker.inputs if i.offset > self.partition.applied.get(i.topic, -1)]
        while waiting:
            group = self.partition.plan(waiting[:group_size])
            for desk in self.partition.desks.values():
                desk.check()
            self.carry_out(group)
            waiting = waiting[group.consumed :]


def entries(broker: Broker) -> list[JournalEntry]:
    """The journal's decisions in their order, repetitions dropped."""
    seen: dict[bytes, JournalEntry] = {}
    for output in broker.delivered:
        if output.topic == TOPICS.journal.name:
            record = parse(JOURNAL, output.value)
            if isinstance(record, JournalEntry):
                seen.setdefault(output.value, record)
    return list(seen.values())


calls = st.sampled_from(["1", "2", "3", "4", "5"])
conferences = st.sampled_from(CONFERENCES)
attempts = st.integers(1, 3) | st.just(100_000)
events: st.SearchStrategy[InputRecord] = st.one_of(
    st.builds(registered, st.sampled_from("ab"), st.sampled_from(["node-1", "node-2"]), conferences),
    st.builds(
        unregistered, st.sampled_from("ab"), st.sampled_from(["node-1", "node-2"]), st.sampled_from(["ended", "lost"]),
        conferences,
    ),
    st.builds(parked, calls, st.integers(1, 2), conferences),
    st.builds(alive, calls, st.sampled_from(["parked", "dialing", "connected"]), attempts, st.just(1), conferences),
    st.builds(started, calls, attempts, st.just(1), conferences),
    st.builds(connected, calls, attempts, st.just(1), conferences),
    st.builds(failed, calls, attempts, st.sampled_from(["not-found", "refused"]), st.just(1), conferences),
    st.builds(left, calls, st.sampled_from(["hangup", "gone", "new-number"]), st.integers(1, 2), conferences),
    st.builds(timer, st.just(0), conferences),
)  # fmt: skip
histories = st.lists(st.tuples(events, st.sampled_from([0, 5, 900, 11_000, 200_000, 4_000_000])), max_size=40)


def history(steps: list[tuple[InputRecord, int]]) -> Broker:
    broker, now = Broker(), 1_000_000
    for event, after in steps:
        now += after
        broker.append(event, now)
    return broker


@settings(max_examples=300, deadline=None)
@given(histories, st.lists(st.integers(0, 12), max_size=8), st.integers(1, 6))
def test_each_input_is_decided_once_and_nothing_is_lost(
    steps: list[tuple[InputRecord, int]], kills: list[int], group_size: int
) -> None:
    broker = history(steps)
    for effects in kills:
        try:
            Worker(broker, effects).run(group_size)
        except KilledError:
            continue
    last = Worker(broker, 1_000_000)
    last.run(group_size)

    found = entries(broker)
    assert len(found) == len(steps)
    assert {(e.position.topic, e.position.offset) for e in found} == {(i.topic, i.offset) for i in broker.inputs}

    # The same decisions as those of a worker that was never killed.
    calm = history(steps)
    Worker(calm, 1_000_000).run(1)
    assert [e.model_dump(exclude={"epoch", "instructions", "previous_hash"}) for e in found] == [
        e.model_dump(exclude={"epoch", "instructions", "previous_hash"}) for e in entries(calm)
    ]

    # Every instruction that was decided was delivered, and an id never has two meanings.
    instructed: dict[str, bytes] = {}
    for output in broker.delivered:
        if output.topic == TOPICS.dials.name:
            instruction = parse(DIALS, output.value)
            assert (
                instructed.setdefault(instruction.instruction_id + instruction.conference, output.value) == output.value
            )
    decided = {i.instruction_id + i.conference for e in found for i in e.instructions}
    assert decided == set(instructed)
    check_attempts_only_grow(found)
    loaded = Partition(0, TOPICS, POLICY)
    loaded.load(broker.rows.items())
    assert {c: (d.row, d.stays, d.registrations) for c, d in loaded.desks.items()} == {
        c: (d.row, d.stays, d.registrations) for c, d in last.partition.desks.items()
    }
    check_chains(broker)
    check_fold(found, last.partition)


def check_attempts_only_grow(found: list[JournalEntry]) -> None:
    """Within a stay an attempt is never taken back, and no two instructions have the same."""
    attempts: dict[tuple[str, object, object], int] = {}
    for entry in found:
        for change in entry.changes:
            if change.get("set") == "stay":
                key = (entry.conference, change["call_id"], change["stay"])
                assert int(change["attempt"]) >= attempts.get(key, 0)
                attempts[key] = int(change["attempt"])
            elif change.get("forgotten") == "stay":
                attempts = {k: v for k, v in attempts.items() if k[:2] != (entry.conference, change["key"])}


def check_chains(broker: Broker) -> None:
    """Versions have no gap, and each entry names the one before it by its hash."""
    heads: dict[str, tuple[int, str]] = {}
    for value in dict.fromkeys(o.value for o in broker.delivered if o.topic == TOPICS.journal.name):
        record = parse(JOURNAL, value)
        if not isinstance(record, JournalEntry | DeskSnapshot):
            continue
        version, head = heads.get(record.conference, (0, None))
        if isinstance(record, DeskSnapshot):
            assert (record.version, record.previous_hash) == (version, head)
            heads[record.conference] = (version, digest(value))
            continue
        assert record.version == version + 1
        assert record.previous_hash == head
        heads[record.conference] = (record.version, digest(value))
        if record.outcome == "retired":
            del heads[record.conference]


def check_fold(found: list[JournalEntry], partition: Partition) -> None:
    """The table is the fold of the journal."""
    table: dict[tuple[str, str, str], dict[str, object]] = {}
    for entry in found:
        for described in entry.changes:
            change = dict(described)
            if "set" in change:
                kind = str(change.pop("set"))
                table[entry.conference, kind, row_key(kind, change)] = change
            elif change["forgotten"] == "desk":
                table.pop((entry.conference, "desk", ""))
            else:
                table.pop((entry.conference, str(change["forgotten"]), str(change["key"])))
    expected = {}
    for conference, desk in partition.desks.items():
        for kind, rows in (("registration", desk.registrations), ("stay", desk.stays), ("desk", {"": desk.row})):
            for key, row in rows.items():
                fields = orjson.loads(orjson.dumps(dataclasses.asdict(row)))
                fields = {name: value for name, value in fields.items() if name not in {"head", "snapshot_ms"}}
                expected[conference, kind, key] = {k: v for k, v in fields.items() if v is not None}
    assert table == expected


def row_key(kind: str, row: dict[str, object]) -> str:
    if kind == "registration":
        return f"{row['node_id']}|{row['source']}|{row['instance_id']}"
    return str(row["call_id"]) if kind == "stay" else ""


@settings(max_examples=200, deadline=None)
@given(histories)
def test_whoever_waits_beside_a_live_registration_is_dialled_once_time_goes_on(
    steps: list[tuple[InputRecord, int]],
) -> None:
    broker = history(steps)
    worker = Worker(broker, 1_000_000)
    worker.run(5)
    now = broker.inputs[-1].broker_ms if broker.inputs else 1_000_000
    for _ in range(50):
        due = worker.partition.due(now)
        for _, conference in due:
            broker.append(timer(conference=conference), now)
        worker.run(5)
        if not due:
            break
    for desk in worker.partition.desks.values():
        target = desk.target(now)
        for stay in desk.stays.values():
            if target is not None and stay.state is StayState.PARKED:
                assert stay.retry_ms > now, f"{stay} is forgotten beside {target}"
                assert stay.retry_ms <= now + POLICY.backoff_max_ms


def test_a_skipped_input_ends_the_worker_rather_than_being_lost() -> None:
    broker = history([(parked(), 0), (parked("2"), 0), (parked("3"), 0)])
    partition = Partition(0, TOPICS, POLICY)
    partition.plan(broker.inputs[:1])
    with pytest.raises(GapError, match="offset 2 came after 0"):
        partition.plan(broker.inputs[2:])
    with pytest.raises(GapError, match="applied before"):
        partition.plan(broker.inputs[:1])


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        (b"49123", b"not json", "not JSON"),
        (b"49123", None, "no value"),
        (b"49123", b"\xff\x00", "not JSON"),
        (b"49123", b'{"type":"dance","schema_version":1}', "'dance' is none of"),
        (b"49123", b'{"type":"call-alive"}', "has no schema_version"),
        (b"49123", parked().encode().replace(b'"schema_version":1', b'"schema_version":9'), "upgrade this program"),
        (b"49124", parked().encode(), "must be its conference"),
        (None, parked().encode(), "must be its conference"),
        (b"abc", parked().encode().replace(b"49123", b"abc"), "conference"),
    ],
)
def test_what_cannot_be_read_is_set_aside_and_nothing_stops(
    key: bytes | None, value: bytes | None, reason: str
) -> None:
    partition = Partition(0, TOPICS, POLICY)
    good = parked()
    group = partition.plan(
        [Input(TOPICS.calls.name, 0, 1, key, value), Input(TOPICS.calls.name, 1, 2, b"49123", good.encode())]
    )
    assert group.consumed == 2
    [rejected] = [o for o in group.outputs if o.topic == TOPICS.rejected.name]
    headers = dict(rejected.headers)
    assert reason in headers["callyard-reason"].decode()
    assert headers["callyard-position"] == b"callyard.calls-0@0"
    assert rejected.value == (value or b"")
    assert "gw-1/1" in partition.desks["49123"].stays
    # The outbox carries bytes that aren't text through a restart.
    again = Partition(0, TOPICS, POLICY)
    again.load([(k, v) for k, v in group.rows.items() if v is not None])
    assert again.outbox == group.outputs


def test_a_record_in_the_wrong_partition_is_refused() -> None:
    many = topics(KafkaSettings(partitions=12))
    wrong = (partition_of(b"49123", 12) + 1) % 12
    group = Partition(wrong, many, POLICY).plan([Input(many.calls.name, 0, 1, b"49123", parked().encode())])
    [rejected] = [o for o in group.outputs if o.topic == many.rejected.name]
    assert "murmur2" in dict(rejected.headers)["callyard-reason"].decode()


def test_a_new_owner_begins_a_greater_epoch_and_says_what_was_left_unsaid() -> None:
    broker = history([(parked(), 0), (registered(), 0)])
    first = Worker(broker, 100)
    first.run(5)
    assert first.partition.epoch == 1
    second = Partition(0, TOPICS, POLICY)
    second.load(broker.rows.items())
    group = second.begin(1, "stream:other")
    said = [parse(JOURNAL, o.value) for o in group.outputs if o.topic == TOPICS.journal.name]
    assert [type(record).__name__ for record in said] == [
        "JournalEntry", "JournalEntry", "EpochBegan", "PolicyDeclared",
    ]  # fmt: skip
    assert isinstance(said[2], EpochBegan)
    assert said[2].epoch == 2
    assert [o.topic for o in group.outputs].count(TOPICS.dials.name) == 1
    assert second.begin(57, "stream:later").outputs
    assert second.epoch == 57, "never less than the group's generation"


def test_a_quiet_partition_that_changes_hands_says_no_more_each_time() -> None:
    broker, sizes = Broker(), []
    for _ in range(5):
        sizes.append(len(Worker(broker, 100).partition.outbox))
        broker.delivered.clear()
        Worker(broker, 100)
    assert max(sizes) <= 2


def test_loading_a_partition_gives_the_desk_that_was_decided() -> None:
    broker = history([(parked(), 0), (registered(), 5), (started(), 5), (parked("2"), 5), (failed("2"), 9)])
    worker = Worker(broker, 1_000)
    worker.run(2)
    loaded = Partition(0, TOPICS, POLICY)
    loaded.load(broker.rows.items())
    desk, other = loaded.desks["49123"], worker.partition.desks["49123"]
    assert (desk.row, desk.stays, desk.registrations) == (other.row, other.stays, other.registrations)
    assert list(desk.due(10**9)) == list(other.due(10**9))
    assert loaded.due(10**9) == worker.partition.due(10**9) != []


def test_whoever_waits_gets_an_instruction_at_the_gateways_own_partition() -> None:
    many = topics(KafkaSettings(partitions=12))
    number = partition_of(b"49123", 12)
    partition = Partition(number, many, Policy.of(PolicySettings()))
    events = [parked(str(call)) for call in range(50)]
    inputs = [Input(many.calls.name, n, 1, b"49123", event.encode()) for n, event in enumerate(events)]
    partition.plan(inputs)
    group = partition.plan([Input(many.registrations.name, 0, 2, b"49123", registered().encode())])
    dials = [output for output in group.outputs if output.topic == many.dials.name]
    assert {parse(DIALS, output.value).call_id for output in dials} == {event.call_id for event in events}
    assert {(output.key, output.partition) for output in dials} == {(b"gw-1", partition_of(b"gw-1", 12))}
    assert {parse(DIALS, output.value).partition for output in dials} == {number}


@pytest.mark.parametrize(
    ("key", "value"),
    [(b"49123", b"\0" * 600_000), (b"k" * 900_000, b"v" * 600_000), (None, b'"' * 600_000), (b"49123", b"x" * 2600)],
    ids=["nul", "long key", "quotes", "many"],
)
def test_no_group_outgrows_a_batch_whatever_is_rejected(key: bytes | None, value: bytes) -> None:
    partition = Partition(0, TOPICS, POLICY)
    left = [Input(TOPICS.calls.name, number, 1, key, value) for number in range(60)]
    while left:
        group = partition.plan(left)
        assert group.consumed > 0
        written = sum(len(k) + len(v or b"") for k, v in group.rows.items())
        assert written < CHANGELOG_MAX_BYTES - 200_000
        assert all(len(o.value) + len(o.key or b"") < 1_000_000 - 20_000 for o in group.outputs), "a broker's limit"
        left = left[group.consumed :]


def test_the_largest_fan_out_fits_a_batch() -> None:
    policy = dataclasses.replace(POLICY, fan_out=500)
    partition = Partition(0, TOPICS, policy)
    calls = [
        parked("u" * 140 + str(call), conference="49123").model_copy(
            update={"gateway_id": "g" * 64, "call_id": "g" * 64 + "/" + "u" * 140 + str(call), "caller": "c" * 200}
        )
        for call in range(500)
    ]
    inputs = [Input(TOPICS.calls.name, n, 1, b"49123", call.encode()) for n, call in enumerate(calls)]
    while inputs:
        inputs = inputs[partition.plan(inputs).consumed :]
    group = partition.plan([Input(TOPICS.registrations.name, 0, 2, b"49123", registered().encode())])
    assert sum(o.topic == TOPICS.dials.name for o in group.outputs) == 500
    assert sum(len(k) + len(v or b"") for k, v in group.rows.items()) < CHANGELOG_MAX_BYTES - 200_000


def test_the_rows_that_are_left_are_the_desks_that_are_left() -> None:
    day = 86_400_000
    broker = history(
        [(registered(), 0), (parked(), 5), (left(), 5), (unregistered(), 5), (timer(), day), (timer(), 9 * day)]
    )
    worker = Worker(broker, 1_000)
    worker.run(1)
    assert worker.partition.desks == {}
    assert worker.partition.due(10**15) == []
    assert list(broker.rows) == [b"0|@"], "nothing is kept of a number that was forgotten"
