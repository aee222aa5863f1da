"""Whether what an entry holds as free JSON is what its readers take it for: rows, and what the input said. Pure.

In the contract these are objects without a form of their own, so that a row may grow. Whoever may write to the journal
can put anything there: it must be found here, and named, and never end an audit half-way. Part of an audit's inner
loop. Fields that this version doesn't know are not looked at.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from enum import Enum
from typing import Any

from callyard.records import RecordError
from streams.rows import DeskRow, RegistrationRow, StayRow

MOST = 2**53 - 1
"""The largest number of the contract."""
_MISSING: Any = object()
_Field = tuple[str, Any, bool, bool]
"""Name; a type, or the values of an enum; whether it may be missing; whether it may be null."""


def require_decision(content: Mapping[str, Any]) -> None:
    """Raise `RecordError` where a decision, as JSON, isn't one; of what `require_free` looks at, too."""
    _require(content, _DECISION, "decision")
    _require(content["position"], _POSITION, "position")
    for number, one in enumerate(content.get("instructions") or ()):
        _require(one, _INSTRUCTION, f"instructions.{number}")
        _require(one, _DIAL if one["type"] == "dial-instruction" else _TELL, f"instructions.{number}")
    require_free(content["changes"], content.get("said"))


def require_snapshot(content: Mapping[str, Any]) -> None:
    """Raise `RecordError` where a desk's snapshot, as JSON, isn't one."""
    _require(content, _SNAPSHOT, "desk-snapshot")
    require_free(content["rows"])


def require_epoch(content: Mapping[str, Any]) -> None:
    """Raise `RecordError` where the beginning of an epoch, as JSON, isn't one."""
    _require(content, _EPOCH, "epoch-began")


def require_policy(content: Mapping[str, Any]) -> None:
    """Raise `RecordError` where a policy's declaration, as JSON, isn't one."""
    _require(content, _POLICY, "policy-declared")


def require_row(kind: str, content: Any) -> None:
    """Raise `RecordError` where a value of the changelog, as JSON, is no row of this kind (``d``, ``r``, ``s``)."""
    _require(content, next(fields for what, fields in _ROWS.items() if what[0] == kind), "row")


def require_applied(content: Any) -> None:
    """Raise `RecordError` where a value of the changelog, as JSON, doesn't tell a partition's position."""
    _require(content, _APPLIED, "position")
    for topic, offset in content["applied"].items():
        if type(offset) is not int:
            raise RecordError(f"position.applied.{topic:.60}: {offset!r:.60} is no offset")


def require_free(changes: Any, said: Any = None) -> None:
    """Raise `RecordError` where changes (or a snapshot's rows) aren't rows, or what was said can't have been."""
    if said is not None:
        _require(said, _SAID, "said")
    for number, change in enumerate(changes):
        if type(change) is not dict:
            raise RecordError(f"changes.{number}: an object is expected, this is {change!r:.60}")
        what = change.get("set")
        if what is None:
            _require(change, _FORGOTTEN, f"changes.{number}")
            if change["forgotten"] != "desk":
                _require(change, _KEY, f"changes.{number}")
        elif type(what) is str and what in _ROWS:
            _require(change, _ROWS[what], f"changes.{number}")
        else:
            raise RecordError(f"changes.{number}.set: {what!r:.60} is no kind of row")


def _require(content: Any, fields: tuple[_Field, ...], where: str) -> None:
    if type(content) is not dict:
        raise RecordError(f"{where}: an object is expected, this is {content!r:.60}")
    for name, wanted, optional, nullable in fields:
        value = content.get(name, _MISSING)
        kind = type(value)
        if kind is wanted:
            if kind is int and not 0 <= value <= MOST:
                raise RecordError(f"{where}.{name}: {value} is out of range")
        elif kind is str and type(wanted) is frozenset:
            if value not in wanted:
                raise RecordError(f"{where}.{name}: {value!r:.60} is none of {', '.join(sorted(wanted))}")
        elif value is _MISSING:
            if not optional:
                raise RecordError(f"{where} has no {name}")
        elif value is not None or not nullable:
            raise RecordError(f"{where}.{name}: {value!r:.60} isn't what belongs there")


def _row(row: type[Any]) -> tuple[_Field, ...]:
    """What a row's fields must be, from its class."""
    hints = typing.get_type_hints(row)
    # A stay's form of the number has a default, but was always written, and is read as such.
    return tuple(_field(one.name, hints[one.name], one.default is not dataclasses.MISSING and one.name != "caller_form")
                 for one in dataclasses.fields(row))  # fmt: skip


def _field(name: str, hint: Any, optional: bool) -> _Field:
    members = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    [wanted] = [one for one in members if one is not types.NoneType]
    if issubclass(wanted, Enum):
        wanted = frozenset(one.value for one in wanted)
    return name, wanted, optional, types.NoneType in members


def _fields(kind: type[Any], *names: str, optional: bool = False, nullable: bool = False) -> tuple[_Field, ...]:
    return tuple((name, kind, optional, nullable) for name in names)


_ROWS = {"registration": _row(RegistrationRow), "stay": _row(StayRow), "desk": _row(DeskRow)}
_FORGOTTEN: tuple[_Field, ...] = (("forgotten", frozenset({"registration", "stay", "desk"}), False, False),)
_KEY = _fields(str, "key")
_SAID = (
    *_fields(str, "call_id", "reason", "after", optional=True),
    *_fields(int, "stay", "attempt", "hangup_cause", "sip_code", "parked_at_ms", optional=True),
)
_CHAINED = (*_fields(str, "conference"), *_fields(int, "version", "epoch"),
            *_fields(str, "previous_hash", optional=True, nullable=True))  # fmt: skip
_DECISION = (
    *_CHAINED, *_fields(str, "event_type", "outcome", "why", "policy_digest"), *_fields(int, "broker_ms", "now_ms"),
    *_fields(dict, "position"), *_fields(list, "changes"), *_fields(list, "instructions", optional=True),
)  # fmt: skip
_APPLIED = _fields(dict, "applied")
_EPOCH = _fields(int, "epoch")
_POLICY = (*_fields(str, "digest"), *_fields(dict, "policy"))
_SNAPSHOT = (*_CHAINED, *_fields(list, "rows"))
_POSITION = (*_fields(str, "topic"), *_fields(int, "partition", "offset"))
_INSTRUCTION = (
    ("type", frozenset({"dial-instruction", "tell-instruction"}), False, False),
    *_fields(str, "call_id"), *_fields(int, "stay", "attempt"),
)  # fmt: skip
_DIAL = _fields(str, "node_id", "source", "instance_id")
_TELL = _fields(str, "notice")
