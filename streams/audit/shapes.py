"""Whether what an entry holds as free JSON is what its readers take it for: rows, and what the input said. Pure.

In the contract these are objects without a form of their own, so that a row may grow. Whoever may write to the journal
can put anything there: it must be found here, and named, and never end an audit half-way. Part of an audit's inner
loop. Fields that this version doesn't know are not looked at.
"""

from __future__ import annotations

import dataclasses
import operator
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any

from callyard.records import RecordError
from streams.rows import DeskRow, RegistrationRow, StayRow

MOST = 2**53 - 1
"""The largest number of the contract."""
_MISSING: Any = object()
_Field = tuple[str, Any, bool, bool]
"""Name; a type, or the values of an enum; whether it may be missing; whether it may be null."""


def require_counted(content: Mapping[str, Any]) -> None:
    """Raise `RecordError` where what an audit counts, keeps and compares of a decision isn't what it must be.

    The quick look of a loop that is to read as fast as Kafka gives: `require_decision` looks at all, and says what is
    wrong. What is in other fields raises where it is used.
    """
    try:
        head, position, said = _HEAD(content), _PLACE(content["position"]), content.get("said")
        good = tuple(map(type, head)) == _HEAD_KINDS and tuple(map(type, position)) == _PLACE_KINDS
        good = good and (said is None or type(said.get("reason", "")) is str)
        for one in content.get("instructions", ()):
            told = one["type"] == "dial-instruction" or type(one["notice"]) is str
            good = good and told and type(one["call_id"]) is str
        for change in content["changes"]:
            if change.get("set") == "stay" and tuple(map(type, _STAY(change))) != _STAY_KINDS:
                good = False
    except (KeyError, TypeError, AttributeError):
        good = False
    if not good:
        require_decision(content)


def require_decision(content: Mapping[str, Any]) -> None:
    """Raise `RecordError` where a decision, as JSON, isn't one; of what `require_free` looks at, too."""
    _DECISION.require(content, "decision")
    _POSITION.require(content["position"], "position")
    for number, one in enumerate(content.get("instructions") or ()):
        _INSTRUCTION.require(one, f"instructions.{number}")
        (_DIAL if one["type"] == "dial-instruction" else _TELL).require(one, f"instructions.{number}")
    require_free(content["changes"], content.get("said"))


def require_snapshot(content: Mapping[str, Any]) -> None:
    """Raise `RecordError` where a desk's snapshot, as JSON, isn't one."""
    _SNAPSHOT.require(content, "desk-snapshot")
    require_free(content["rows"])


def require_epoch(content: Mapping[str, Any]) -> None:
    """Raise `RecordError` where the beginning of an epoch, as JSON, isn't one."""
    _EPOCH.require(content, "epoch-began")


def require_policy(content: Mapping[str, Any]) -> None:
    """Raise `RecordError` where a policy's declaration, as JSON, isn't one."""
    _POLICY.require(content, "policy-declared")


def require_row(kind: str, content: Any) -> None:
    """Raise `RecordError` where a value of the changelog, as JSON, is no row of this kind (``d``, ``r``, ``s``)."""
    next(shape for what, shape in _ROWS.items() if what[0] == kind).require(content, "row")


def require_applied(content: Any) -> None:
    """Raise `RecordError` where a value of the changelog, as JSON, doesn't tell a partition's position."""
    _APPLIED.require(content, "position")
    for topic, offset in content["applied"].items():
        if type(offset) is not int:
            raise RecordError(f"position.applied.{topic:.60}: {offset!r:.60} is no offset")


def require_free(changes: Any, said: Any = None) -> None:
    """Raise `RecordError` where changes (or a snapshot's rows) aren't rows, or what was said can't have been."""
    if said is not None:
        if type(said) is not dict:
            raise RecordError(f"said: an object is expected, this is {said!r:.60}")
        for name in said:
            if name in _SAID:
                _require(said, _SAID[name], "said")
    for number, change in enumerate(changes):
        if type(change) is not dict:
            raise RecordError(f"changes.{number}: an object is expected, this is {change!r:.60}")
        what = change.get("set")
        if what is None:
            _FORGOTTEN.require(change, f"changes.{number}")
            if change["forgotten"] != "desk":
                _KEY.require(change, f"changes.{number}")
        elif type(what) is str and what in _ROWS:
            _ROWS[what].require(change, f"changes.{number}")
        else:
            raise RecordError(f"changes.{number}.set: {what!r:.60} is no kind of row")


class _Shape:
    """The fields of an object, looked at all at once; only where that fails, one by one, to say what is wrong."""

    def __init__(self, *fields: _Field) -> None:
        self._fields = fields
        always = sorted((one for one in fields if not _seldom(one)), key=lambda one: one[1] is not int)
        self._always = _getter([name for name, *_ in always])
        self._kinds = tuple(str if type(wanted) is frozenset else wanted for _, wanted, _, _ in always)
        self._numbers = sum(kind is int for kind in self._kinds)
        self._enums = [(at, one[1]) for at, one in enumerate(always) if type(one[1]) is frozenset]
        self._seldom = [(name, str, wanted) if type(wanted) is frozenset else (name, wanted, None)
                        for name, wanted, *_ in filter(_seldom, fields)]  # fmt: skip

    def require(self, content: Any, where: str) -> None:
        """Raise `RecordError` where it isn't such an object."""
        if type(content) is not dict:
            raise RecordError(f"{where}: an object is expected, this is {content!r:.60}")
        if not self._holds(content):
            for field in self._fields:
                _require(content, field, where)

    def _holds(self, content: dict[str, Any]) -> bool:
        try:
            values = self._always(content)
        except KeyError:
            return False
        if tuple(map(type, values)) != self._kinds:
            return False
        numbers = values[: self._numbers]
        if numbers and (min(numbers) < 0 or max(numbers) > MOST):
            return False
        for at, among in self._enums:
            if values[at] not in among:
                return False
        get = content.get
        for name, kind, allowed in self._seldom:
            value = get(name)
            if value is not None and (type(value) is not kind or (allowed is not None and value not in allowed)):
                return False
        return True


def _seldom(field: _Field) -> bool:
    # What is null isn't journalled; nor is when a desk was last journalled whole.
    return field[3] or field[0] == "snapshot_ms"


def _getter(names: Sequence[str]) -> Callable[[dict[str, Any]], tuple[Any, ...]]:
    """All of these values; of none or one, too, as a tuple."""
    if len(names) > 1:
        return operator.itemgetter(*names)
    return lambda content: tuple(content[name] for name in names)


def _require(content: dict[str, Any], field: _Field, where: str) -> None:
    name, wanted, optional, nullable = field
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


def _row(row: type[Any]) -> _Shape:
    """What a row's fields must be, from its class."""
    hints = typing.get_type_hints(row)
    # A stay's form of the number has a default, but was always written, and is read as such.
    return _Shape(*(_field(one.name, hints[one.name], one.default is not dataclasses.MISSING
                           and one.name != "caller_form") for one in dataclasses.fields(row)))  # fmt: skip


def _field(name: str, hint: Any, optional: bool) -> _Field:
    members = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    [wanted] = [one for one in members if one is not types.NoneType]
    if issubclass(wanted, Enum):
        wanted = frozenset(one.value for one in wanted)
    return name, wanted, optional, types.NoneType in members


def _fields(kind: type[Any], *names: str, optional: bool = False, nullable: bool = False) -> tuple[_Field, ...]:
    return tuple((name, kind, optional, nullable) for name in names)


_ROWS = {"registration": _row(RegistrationRow), "stay": _row(StayRow), "desk": _row(DeskRow)}
_FORGOTTEN = _Shape(("forgotten", frozenset({"registration", "stay", "desk"}), False, False))
_KEY = _Shape(*_fields(str, "key"))
_SAID = {
    field[0]: field
    for field in (
        *_fields(str, "call_id", "reason", "after"),
        *_fields(int, "stay", "attempt", "hangup_cause", "sip_code", "parked_at_ms"),
    )
}
_CHAINED = (*_fields(str, "conference"), *_fields(int, "version", "epoch"),
            *_fields(str, "previous_hash", optional=True, nullable=True))  # fmt: skip
_DECISION = _Shape(
    *_CHAINED, *_fields(str, "event_type", "outcome", "why", "policy_digest"), *_fields(int, "broker_ms", "now_ms"),
    *_fields(dict, "position"), *_fields(list, "changes"), *_fields(list, "instructions", optional=True),
)  # fmt: skip
_APPLIED = _Shape(*_fields(dict, "applied"))
_EPOCH = _Shape(*_fields(int, "epoch"))
_POLICY = _Shape(*_fields(str, "digest"), *_fields(dict, "policy"))
_SNAPSHOT = _Shape(*_CHAINED, *_fields(list, "rows"))
_POSITION = _Shape(*_fields(str, "topic"), *_fields(int, "partition", "offset"))
_INSTRUCTION = _Shape(
    ("type", frozenset({"dial-instruction", "tell-instruction"}), False, False),
    *_fields(str, "call_id"), *_fields(int, "stay", "attempt"),
)  # fmt: skip
_DIAL = _Shape(*_fields(str, "node_id", "source", "instance_id"))
_TELL = _Shape(*_fields(str, "notice"))
_HEAD = operator.itemgetter("conference", "event_type", "outcome", "version", "epoch", "now_ms", "broker_ms")
_HEAD_KINDS = (str, str, str, int, int, int, int)
_PLACE = operator.itemgetter("topic", "partition", "offset")
_PLACE_KINDS = (str, int, int)
_STAY = operator.itemgetter("call_id", "state", "stay", "since_ms", "until_ms")
_STAY_KINDS = (str, str, int, int, int)
