"""The rows of the desk table: what is known of one registration, one stay, one desk, one partition.

A desk is many rows, so that an event writes only what it changes: a thousand callers of one conference are not
rewritten for each of them. Keys are led by the partition and sort by conference: ``7|49123|r|…``. Rows are frozen;
a change is a new row. Values are JSON of the fields, so that a row in Kafka reads as what it is.
"""

from __future__ import annotations

import dataclasses
from enum import Enum
from typing import Any

import orjson

from callyard.records import CallerForm, Notice, Source


class RegistrationState(str, Enum):
    """Where a registration stands."""

    LIVE = "live"
    LAPSED = "lapsed"
    """Not renewed in time; a renewal revives it."""
    LOST = "lost"
    """Its hook can no longer vouch for it; a renewal revives it."""
    ENDED = "ended"
    """The conference ended: this instance never comes back."""


class StayState(str, Enum):
    """Where a stay stands."""

    PARKED = "parked"
    DIALING = "dialing"
    CONNECTED = "connected"
    LAPSED = "lapsed"
    """Not renewed in time; anything that its gateway says of it revives it."""
    GONE = "gone"
    """Its gateway no longer knew the call; anything that it says of it later revives it."""
    LEFT = "left"
    """Over for good."""


ACTIVE = frozenset({StayState.PARKED, StayState.DIALING, StayState.CONNECTED})


@dataclasses.dataclass(frozen=True, slots=True)
class RegistrationRow:
    """One conference instance at one node, as one source says."""

    node_id: str
    source: Source
    instance_id: str
    sip_uri: str
    state: RegistrationState
    serial: int
    """The desk's version at which it was registered, or last came back: the greater, the newer."""
    since_ms: int
    until_ms: int
    """End of its lease; of a registration that isn't live: when it may be forgotten."""
    renewed_ms: int = 0
    """When its node last vouched for it."""
    down_ms: int = 0
    """When it last ceased to be live (0: never)."""
    sequence: int = 0
    """The sender's sequence of what was said of it last; 0 where registrations aren't signed."""

    @property
    def key(self) -> str:
        return f"{self.node_id}|{self.source.value}|{self.instance_id}"

    @property
    def due_ms(self) -> int:
        """When time alone changes this row."""
        return self.until_ms


@dataclasses.dataclass(frozen=True, slots=True)
class StayRow:
    """One call's present stay at this desk."""

    call_id: str
    gateway_id: str
    stay: int
    state: StayState
    since_ms: int
    """When the stay began."""
    until_ms: int
    """End of its lease; of a stay that isn't active: when it may be forgotten."""
    attempt: int = 0
    """Number of the last attempt instructed (0: none yet); never gets smaller within a stay."""
    target: str | None = None
    """Key of the registration of that attempt."""
    target_from: int = 0
    """The first attempt of those in a row to ``target``."""
    talk: int = 0
    """The attempt that brought the caller into the conference, of the last talk."""
    deadline_ms: int = 0
    """While dialling: when an outcome is overdue."""
    retry_ms: int = 0
    """While parked after a failed dial: not before then (0: at any time)."""
    failures: int = 0
    """Failed dials in a row to ``target``."""
    misses: int = 0
    """Dials to ``target`` in a row that failed at the node: after ``Policy.attempts`` the caller may be told."""
    notice: Notice | None = None
    """What the present attempt tells the caller; None: it is a dial."""
    told: bool = False
    """The caller has been told that the conference can't be reached."""
    tried: int = 0
    """Serial of the newest registration that was tried: one that is newer is tried at once."""
    anchor: str | None = None
    """Key of the registration whose node ended the talk before this stay: not dialled as long as that one lives."""
    held_ms: int = 0
    """When it is looked at whether ``anchor`` outlived that talk (0: it did, or there is no question)."""
    connected_ms: int = 0
    """When the caller came into the conference, for the last time."""
    losses: int = 0
    """Talks in a row that failed soon after they had begun, over the call's stays."""
    caller: str | None = None
    caller_form: CallerForm = CallerForm.NONE

    @property
    def key(self) -> str:
        return self.call_id

    @property
    def due_ms(self) -> int:
        """When time alone changes this row."""
        if self.state is StayState.DIALING:
            return min(self.until_ms, self.deadline_ms)
        if self.state is StayState.PARKED:
            return min(self.until_ms, self.retry_ms or self.until_ms, self.held_ms or self.until_ms)
        return self.until_ms

    @property
    def waits(self) -> bool:
        """Whether the caller waits for a dial that nothing but a live registration holds back."""
        return self.state is StayState.PARKED and not self.retry_ms and not self.held_ms


@dataclasses.dataclass(frozen=True, slots=True)
class DeskRow:
    """What is known of the desk as a whole; all that is left of an ended one."""

    version: int = 0
    now_ms: int = 0
    """The desk's time: never goes back."""
    head: str | None = None
    """SHA-256 of the desk's last record in the journal."""
    overflow: bool = False
    """More callers are due than one decision may concern: the next one is due at once."""
    empty_ms: int | None = None
    """Since when the desk has no other row."""
    snapshot_ms: int = 0
    """When the journal last had the whole desk: at its beginning, or in a snapshot. Not journalled; decides nothing."""


Row = RegistrationRow | StayRow | DeskRow  # a type alias; valid at run time from Python 3.10 on


_FIELDS: dict[type[Row], frozenset[str]] = {
    row: frozenset(field.name for field in dataclasses.fields(row)) for row in (RegistrationRow, StayRow, DeskRow)
}


def encode(row: Row) -> bytes:
    """A row's value as it stands in the changelog."""
    return orjson.dumps(dataclasses.asdict(row))


def decode(kind: str, value: bytes) -> Row:
    """A row of this kind (``d``, ``r``, ``s``) from its value.

    Fields of a newer version are left out. Raises `ValueError`, `KeyError` or `TypeError` for anything that no `encode`
    wrote.
    """
    return of_fields(kind, orjson.loads(value))


def of_fields(kind: str, fields: dict[str, Any]) -> Row:
    """A row of this kind (``d``, ``r``, ``s``) from its fields as they stand in JSON; otherwise as `decode`."""
    fields = dict(fields)
    if kind == "r":
        fields["source"] = Source(fields["source"])
        fields["state"] = RegistrationState(fields["state"])
        return RegistrationRow(**_known(RegistrationRow, fields))
    if kind == "s":
        fields["caller_form"] = CallerForm(fields["caller_form"])
        fields["state"] = StayState(fields["state"])
        if fields.get("notice") is not None:
            fields["notice"] = Notice(fields["notice"])
        return StayRow(**_known(StayRow, fields))
    if kind == "d":
        return DeskRow(**_known(DeskRow, fields))
    raise ValueError(f"row kind {kind!r} is none of d, r, s")


def _known(row: type[Row], fields: dict[str, Any]) -> dict[str, Any]:
    # What a newer version has added is left out, so that one may go back a version.
    names = _FIELDS[row]
    return fields if fields.keys() <= names else {name: fields[name] for name in fields.keys() & names}


def desk_key(partition: int, conference: str) -> bytes:
    """The table key of a desk's own row."""
    return f"{partition}|{conference}|d".encode()


def registration_key(partition: int, conference: str, key: str) -> bytes:
    """The table key of a registration."""
    return f"{partition}|{conference}|r|{key}".encode()


def stay_key(partition: int, conference: str, call_id: str) -> bytes:
    """The table key of a call's stay."""
    return f"{partition}|{conference}|s|{call_id}".encode()


def position_key(partition: int) -> bytes:
    """The table key of a partition's own row: applied positions, epoch and outbox."""
    return f"{partition}|@".encode()


def claim_key(partition: int) -> bytes:
    """The key of an owner's claim (`streams.claims`), a tombstone."""
    return f"{partition}|!".encode()


def split_key(key: bytes) -> tuple[int, str, str, str]:
    """A table key's partition, conference, kind and rest.

    The kinds: ``d``, ``r`` and ``s`` for rows of a desk; ``@`` for the partition's position, ``!`` for a claim.
    """
    partition, conference, *more = key.decode().split("|", 3)
    if conference in {"@", "!"}:
        return int(partition), "", conference, ""
    return int(partition), conference, more[0], more[1] if len(more) > 1 else ""
