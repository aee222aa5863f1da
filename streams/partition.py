"""One partition of the table: its desks, what was applied of each input, and what must still be said.

The order of effects is laid here, without IO, so that tests can crash it between any two of them:

1. `Partition.plan` decides a group of inputs in memory and returns one `Group`: the changed rows, and with them, in
   the partition's own row, the applied positions and the outbox (the outputs not yet delivered).
2. The shell writes the group's rows to the changelog as one batch: all of it or nothing. Then it delivers the outputs,
   then it acknowledges the inputs.
3. After a crash `Partition.load` takes the rows back; ``applied`` tells where to read on, ``outbox`` what to repeat.
   Repeated outputs are the same bytes; whoever reads them drops what it has.

So each input has exactly one decision, and no crash loses what it said.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson
from pydantic import TypeAdapter
from sortedcontainers import SortedSet

from callyard.records import (
    CALLS,
    REGISTRATIONS,
    TIMERS,
    EpochBegan,
    InputRecord,
    PolicyDeclared,
    Position,
    RecordError,
    digest,
    parse,
)
from callyard.topics import Topics, partition_of
from streams.census import Census, Facts
from streams.decide import decide
from streams.desk import Desk
from streams.journal import entry, snapshot, stamped
from streams.policy import Policy
from streams.rows import Row, decode, desk_key, encode, position_key, registration_key, split_key, stay_key

GROUP_BYTES = 2_000_000
"""A group ends when its rows and its outbox, as they are written, have reached this size. One more input adds at most
some 4 MB (`PolicySettings.fan_out`) and a snapshot, so that a group stays below
`callyard.topics.CHANGELOG_MAX_BYTES`."""
SNAPSHOT_BYTES = 1_000_000
"""A desk that is larger as JSON (some 2,000 callers) has no snapshots; the outbox holds one escaped, a fifth longer."""
SNAPSHOT_ROWS = 4_000
"""A desk of more rows isn't even written as JSON to see how large it is."""
HOUR_MS = 3_600_000
MAX_REJECTED_BYTES = 500_000
MAX_REJECTED_KEY_BYTES = 1_000


@dataclasses.dataclass(frozen=True, slots=True)
class Input:
    """One record of an input topic, as it came."""

    topic: str
    offset: int
    broker_ms: int
    key: bytes | None
    value: bytes | None


@dataclasses.dataclass(frozen=True, slots=True)
class Output:
    """One record to deliver. ``partition`` is always explicit, so that a repetition goes where the first one went."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()
    at_ms: int | None = None
    """The record's timestamp, on topics that take the writer's."""


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
    """What a group of inputs leads to: rows to write as one batch (None deletes), then outputs to deliver."""

    rows: Mapping[bytes, bytes | None]
    outputs: tuple[Output, ...]
    consumed: int
    """How many of the given inputs it covers."""
    facts: Facts = dataclasses.field(default_factory=Facts)
    """What it brought about, for counting."""


class GapError(RuntimeError):
    """Inputs were skipped: going on would lose them. The worker must end and read again."""


class Partition:
    """The state of one owned partition."""

    def __init__(self, number: int, topics: Topics, policy: Policy, snapshot_ms: int = HOUR_MS) -> None:
        """``snapshot_ms``: the time between two snapshots of a desk, and between two declarations of the policy."""
        self.number = number
        self.desks: dict[str, Desk] = {}
        self.applied: dict[str, int] = {}
        self.epoch = 0
        self.census = Census()
        self.outbox: tuple[Output, ...] = ()
        self._due: SortedSet[tuple[int, str]] = SortedSet()
        self._due_of: dict[str, int] = {}
        self._topics = topics
        self._policy = policy
        self._policy_digest = policy.digest
        self._snapshot_ms = snapshot_ms
        self._declared_ms: int | None = None
        self._stamped = 1
        self._adapters: dict[str, TypeAdapter[Any]] = {
            topics.registrations.name: REGISTRATIONS,
            topics.calls.name: CALLS,
            topics.timers.name: TIMERS,
        }

    # --- recovery ---------------------------------------------------------------------------------------------------

    def load(self, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """Take the partition's rows as the changelog has them. Raises `ValueError` for a row that isn't ours."""
        for key, value in rows:
            number, conference, kind, _ = split_key(key)
            if number != self.number:
                raise ValueError(f"row {key!r} is of another partition than {self.number}")
            if kind == "@":
                self._load_position(value)
                continue
            desk = self.desks.get(conference)
            if desk is None:  # as setdefault would make one for each row
                desk = self.desks[conference] = Desk(conference)
            desk.load(decode(kind, value))
        for conference in self.desks:
            self._index(conference)
        self.census.load(self.desks.values())

    def _load_position(self, value: bytes) -> None:
        content = orjson.loads(value)
        self.applied = dict(content["applied"])
        self.epoch = content["epoch"]
        self.outbox = tuple(_output(item) for item in content["outbox"])

    def rows(self, keys: Iterable[bytes]) -> dict[bytes, bytes | None]:
        """What the changelog must say under these keys of desks; None where there is no such row any more."""
        found: dict[bytes, bytes | None] = {}
        for key in keys:
            _, conference, kind, rest = split_key(key)
            desk = self.desks.get(conference)
            row: Row | None = None
            if desk is not None and kind == "d":
                row = desk.row
            elif desk is not None and kind in {"r", "s"}:
                row = desk.registrations.get(rest) if kind == "r" else desk.stays.get(rest)
            if kind in {"d", "r", "s"}:
                found[key] = None if row is None else encode(row)
        return found

    def begin(self, least: int, worker: str) -> Group:
        """Begin an epoch of this number or a greater one: what older owners say from now on is void.

        Call it once for each time that the partition is taken over.
        """
        self.epoch = max(self.epoch + 1, least)
        journal = self._topics.journal.name
        began = EpochBegan(
            partition=self.number, epoch=self.epoch, worker=worker, policy_digest=self._policy_digest
        ).encode()
        # What an older owner left undelivered is said again first, as it was; but not that its epoch began, or a
        # partition that changes hands without an input in between would say more each time.
        left = (output for output in self.outbox if output.key is not None or output.topic != journal)
        outputs = (
            *left,
            Output(journal, self.number, None, began, at_ms=self._stamp(0)),
            self._declared(0),
        )
        self.outbox = ()
        items = [orjson.dumps(_item(output)) for output in outputs]
        return Group({position_key(self.number): self._position(items)}, outputs, 0)

    # --- deciding ---------------------------------------------------------------------------------------------------

    def plan(self, inputs: Sequence[Input]) -> Group:
        """Decide inputs in their order and fold them. Raises `GapError` where one was skipped."""
        rows: dict[bytes, bytes | None] = {}
        outputs: list[Output] = []
        facts = Facts()
        items: list[bytes] = []
        consumed = size = 0
        for given in inputs:
            if size > GROUP_BYTES:
                break
            applied = self.applied.get(given.topic)
            if applied is not None and given.offset <= applied:
                raise GapError(f"{given.topic}-{self.number} offset {given.offset} was applied before")
            if applied is not None and given.offset != applied + 1:
                raise GapError(
                    f"{given.topic}-{self.number}: offset {given.offset} came after {applied}; some are missing"
                )
            said, written = len(outputs), dict[bytes, bytes | None]()
            self._one(given, written, outputs, facts)
            self.applied[given.topic] = given.offset
            consumed += 1
            rows.update(written)
            items += [orjson.dumps(_item(output)) for output in outputs[said:]]
            size += sum(len(key) + len(value or b"") for key, value in written.items())
            size += sum(map(len, items[said:]))
        rows[position_key(self.number)] = self._position(items)
        return Group(rows, tuple(outputs), consumed, facts)

    def _one(self, given: Input, rows: dict[bytes, bytes | None], outputs: list[Output], facts: Facts) -> None:
        try:
            event = self._read(given)
        except RecordError as error:
            outputs.append(self._rejected(given, str(error)))
            facts.outcomes["unreadable", "rejected"] += 1
            facts.rejected[given.topic] += 1
            return
        desk = self.desks.get(event.conference)
        if desk is None:
            desk = self.desks[event.conference] = Desk(event.conference)
        self._declare_again(given.broker_ms, outputs)
        self._snapshot(desk, given.broker_ms, outputs)
        decision = decide(desk, event, given.broker_ms, self._policy)
        instructions = tuple(stamped(one, self.number, self.epoch) for one in decision.instructions)
        position = Position(topic=given.topic, partition=self.number, offset=given.offset)
        value = entry(
            desk, event, decision, instructions, position, given.broker_ms, self.epoch, self._policy_digest
        ).encode()
        changes = decision.changes
        changes = dataclasses.replace(
            changes,
            desk=dataclasses.replace(
                changes.desk, head=digest(value), snapshot_ms=desk.row.snapshot_ms or changes.desk.now_ms
            ),
        )
        facts.note(event, decision, desk)
        self.census.follow(desk, changes)
        desk.apply(changes)
        for instruction in instructions:
            key = instruction.gateway_id.encode()
            dials = self._topics.dials
            outputs.append(Output(dials.name, partition_of(key, dials.partitions), key, instruction.encode()))
        outputs.append(self._journalled(desk.conference.encode(), value, given.broker_ms))
        number, conference = self.number, desk.conference
        for registration in changes.registrations:
            rows[registration_key(number, conference, registration.key)] = encode(registration)
        for stay in changes.stays:
            rows[stay_key(number, conference, stay.key)] = encode(stay)
        for key_ in changes.removed_registrations:
            rows[registration_key(number, conference, key_)] = None
        for key_ in changes.removed_stays:
            rows[stay_key(number, conference, key_)] = None
        rows[desk_key(number, conference)] = None if changes.retired else encode(changes.desk)
        if changes.retired:
            del self.desks[conference]
        self._index(conference)

    def _snapshot(self, desk: Desk, broker_ms: int, outputs: list[Output]) -> None:
        """Journal the desk before it changes, where that was last done long ago. What is untouched costs nothing."""
        now = max(broker_ms, desk.row.now_ms)
        if not desk.row.version or now - desk.row.snapshot_ms < self._snapshot_ms:
            return
        head = desk.row.head
        if len(desk.registrations) + len(desk.stays) <= SNAPSHOT_ROWS:
            value = snapshot(desk, now, self.epoch).encode()
            if len(value) <= SNAPSHOT_BYTES:
                outputs.append(self._journalled(desk.conference.encode(), value, broker_ms))
                head = digest(value)
        desk.row = dataclasses.replace(desk.row, head=head, snapshot_ms=now)

    def _declare_again(self, broker_ms: int, outputs: list[Output]) -> None:
        if self._declared_ms is None:
            self._declared_ms = broker_ms
        elif broker_ms - self._declared_ms >= self._snapshot_ms:
            self._declared_ms = broker_ms
            outputs.append(self._declared(broker_ms))

    def _declared(self, broker_ms: int) -> Output:
        policy = PolicyDeclared(partition=self.number, digest=self._policy_digest, policy=self._policy.as_dict())
        return Output(self._topics.journal.name, self.number, None, policy.encode(), at_ms=self._stamp(broker_ms))

    def _journalled(self, key: bytes, value: bytes, broker_ms: int) -> Output:
        return Output(self._topics.journal.name, self.number, key, value, at_ms=self._stamp(broker_ms))

    def _stamp(self, broker_ms: int) -> int | None:
        if not self._topics.replayed:
            return None
        self._stamped = max(self._stamped, broker_ms)
        return self._stamped

    def _read(self, given: Input) -> InputRecord:
        event: InputRecord = parse(self._adapters[given.topic], given.value)
        key = event.conference.encode()
        if given.key != key:
            raise RecordError(f"the record's key {given.key!r} must be its conference, {event.conference!r}")
        wanted = partition_of(key, self._topics.registrations.partitions)
        if wanted != self.number:
            raise RecordError(
                f"conference {event.conference} belongs to partition {wanted}, not {self.number}: the sender must use"
                " Kafka's default partitioner (murmur2)"
            )
        return event

    def _rejected(self, given: Input, reason: str) -> Output:
        position = f"{given.topic}-{self.number}@{given.offset}"
        headers = (
            ("callyard-source", given.topic.encode()),
            ("callyard-position", position.encode()),
            ("callyard-reason", reason.encode(errors="replace")[:2000]),
        )
        rejected = self._topics.rejected
        value = (given.value or b"")[:MAX_REJECTED_BYTES]
        key = None if given.key is None else given.key[:MAX_REJECTED_KEY_BYTES]
        return Output(rejected.name, self.number % rejected.partitions, key, value, headers)

    # --- time -------------------------------------------------------------------------------------------------------

    def due(self, now: int) -> list[tuple[int, str]]:
        """The desks that time alone changes by ``now``: when, and their conference numbers."""
        found = []
        for when, conference in self._due:
            if when > now:
                break
            found.append((when, conference))
        return found

    def _index(self, conference: str) -> None:
        old = self._due_of.pop(conference, None)
        if old is not None:
            self._due.discard((old, conference))
        desk = self.desks.get(conference)
        new = None if desk is None else desk.next_due_ms(self._policy.stub_retention_ms)
        if new is not None:
            self._due.add((new, conference))
            self._due_of[conference] = new

    def _position(self, items: Iterable[bytes]) -> bytes:
        head = orjson.dumps({"applied": self.applied, "epoch": self.epoch})
        return head[:-1] + b',"outbox":[' + b",".join(items) + b"]}"


def _item(output: Output) -> dict[str, Any]:
    item: dict[str, Any] = {"t": output.topic, "p": output.partition}
    if output.at_ms is not None:
        item["a"] = output.at_ms
    if output.key is not None:
        item["k"] = base64.b64encode(output.key).decode()
    # Our own JSON stays readable; what was rejected may be anything, and six times as long when it is escaped.
    if output.headers:
        item["h"] = [[name, base64.b64encode(value).decode()] for name, value in output.headers]
        item["b"] = base64.b64encode(output.value).decode()
    else:
        item["v"] = output.value.decode()
    return item


def _output(item: dict[str, Any]) -> Output:
    return Output(
        topic=item["t"],
        partition=item["p"],
        key=base64.b64decode(item["k"]) if "k" in item else None,
        value=base64.b64decode(item["b"]) if "b" in item else item["v"].encode(),
        headers=tuple((name, base64.b64decode(value)) for name, value in item.get("h", ())),
        at_ms=item.get("a"),
    )
