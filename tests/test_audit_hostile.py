"""A journal in which anything may stand: each reader of it takes an entry or says that it is none, and never breaks."""

from __future__ import annotations

import copy
import dataclasses
import io
from collections.abc import Iterator, Sequence
from datetime import timezone
from typing import Any

import orjson
import pytest
from aiokafka import ConsumerRecord
from hypothesis import given, settings
from hypothesis import strategies as st

from callyard import main
from callyard.records import JOURNAL, InputRecord, RecordError
from callyard.settings import PolicySettings
from streams.audit import render, table_command
from streams.audit.entries import Entries, Told
from streams.audit.exports import CallRows, JournalRows, RegistrationRows, Rows
from streams.audit.find import Gathering, Wanted
from streams.audit.findings import Findings
from streams.audit.happenings import Telling, What
from streams.audit.invariants import Invariants
from streams.audit.lines import Lines
from streams.audit.reading import NewerVersionError, Parser, Span, Unreadable
from streams.audit.rerun import TIMER, Rerun
from streams.audit.shapes import require_decision
from streams.audit.sides import Totals
from streams.audit.table import table_of
from streams.audit.trail import Trail
from streams.audit.verify import Report
from streams.audit.verify_report import show
from streams.audit.writers import Format, writing
from streams.policy import Policy
from tests.support.events import alive, connected, failed, left, parked, registered, started, timer, unregistered
from tests.support.hostile import VALUES
from tests.test_audit_proof import TOPIC, journal
from tests.test_partition import Worker, history

HOUR = 3_600_000
EVENTS: list[tuple[InputRecord, int]] = [
    (parked(), 0), (registered(), 5), (started(), 5), (failed(), 5), (timer(), 2_000), (connected(attempt=2), 5),
    (alive(state="connected", attempt=2), 60_000), (left(reason="conference-left"), HOUR),
    (parked("2"), 5), (unregistered(), 5), (timer(), 200_000), (registered("b"), 5),
    (timer(), 200_000), (timer(), 2 * HOUR), (parked("3"), 5),
]  # fmt: skip


def _recorded() -> list[tuple[bytes | None, bytes]]:
    broker = history(EVENTS)
    Worker(broker, 1_000_000).run(1)
    return [(record.key, record.value) for record in journal(broker)]


RECORDED = _recorded()
BY_INPUT: dict[tuple[str, int], InputRecord] = {}
for _input, (_event, _) in zip(history(EVENTS).inputs, EVENTS, strict=True):
    BY_INPUT[_input.topic, _input.offset] = _event
HOLE = "@@here@@"
SHORT = sorted(name for name, value in VALUES.items() if len(value) < 100_000)


def places(content: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of each value in a JSON value."""
    items: Any = content.items() if isinstance(content, dict) else enumerate(content)
    for name, value in items:
        yield (*before, name)
        if isinstance(value, dict | list):
            yield from places(value, (*before, name))


PLACES = [(number, path) for number, (_, value) in enumerate(RECORDED) for path in places(orjson.loads(value))]


def spoiled(number: int, path: Sequence[Any], raw: str | None) -> bytes:
    """A recorded entry with this raw JSON at one place; None: without what stood there."""
    content = copy.deepcopy(orjson.loads(RECORDED[number][1]))
    at = content
    for step in path[:-1]:
        at = at[step]
    if raw is None:
        del at[path[-1]]
        return orjson.dumps(content)
    at[path[-1]] = HOLE
    return orjson.dumps(content).replace(f'"{HOLE}"'.encode(), raw.encode())


def records(number: int, value: bytes) -> list[ConsumerRecord[Any, Any]]:
    """The journal with another value at one place."""
    return [
        ConsumerRecord(TOPIC, 0, at, 1_000_000 + at, 0, key, value if at == number else sound, None, 0, 0, ())
        for at, (key, sound) in enumerate(RECORDED)
    ]


def told(journal_: Sequence[ConsumerRecord[Any, Any]]) -> tuple[list[Told], int]:
    parser = Parser({TOPIC: JOURNAL}, Unreadable.SKIP, lambda _: None)
    entries = Entries(parser)
    return [one for one in map(entries.take, journal_) if one is not None], parser.skipped


def tell(journal_: Sequence[ConsumerRecord[Any, Any]]) -> int:
    """Read it as stories, tables and exports do; how many were unreadable."""
    found, skipped = told(journal_)
    gathering, calls = Gathering(["gw-1/1", "gw-1/2", "gw-1/3"]), set[str]()
    kinds: tuple[Rows, ...] = (CallRows(0), RegistrationRows(0), JournalRows(0))
    for one in found:
        gathering.take(one)
        calls |= Wanted(callers=frozenset({"+4930"})).calls(one.entry)
    for story in gathering.stories.values():
        story.close(2_000_000)
        orjson.dumps(story.as_dict(2_000_000))
        if story.stays:
            assert list(render.whole(story, 2_000_000, timezone.utc, everything=True))
            assert render.summary(story, 2_000_000, timezone.utc)
    orjson.dumps(table_of(gathering._telling.fold.desks.values()).as_dict())
    for kind in kinds:
        rows = [row for one in found for row in kind.take(one)]
        _written(kind, [*rows, *kind.rest(2_000_000)])
    return skipped


def _written(kind: Rows, rows: list[dict[str, Any]]) -> None:
    for form in Format:
        with writing(kind.columns, form, None, io.BytesIO()) as writer:
            writer.write(rows)


def verified(journal_: Sequence[ConsumerRecord[Any, Any]]) -> int:
    """Read it as `audit verify` does; how many were unreadable."""
    findings = Findings()
    trail, invariants, unreadable = Trail(TOPIC, 0, findings), Invariants(findings), 0
    for record in journal_:
        try:
            entry = trail.take(record.offset, record.value)
            if entry is not None:
                invariants.take(0, "", entry)
        except (RecordError, KeyError, TypeError, AttributeError, ValueError):  # what `Verification.run` sets aside
            unreadable += 1
    report = Report(Span(), findings=findings, invariants=invariants, left=invariants.finish())
    orjson.dumps(report.as_dict())
    show(Lines(), report)
    return unreadable


def replayed(journal_: Sequence[ConsumerRecord[Any, Any]]) -> None:
    """Read it as `replay` does."""
    rerun = Rerun()
    trail = Trail(TOPIC, 0, Findings(), rerun.declare)
    for record in journal_:
        try:
            entry = trail.take(record.offset, record.value)
            if entry is None:
                continue
            if entry["type"] == "decision":
                require_decision(entry)
            if entry["type"] == "desk-snapshot":
                rerun.restore(entry)
            elif entry["event_type"] == TIMER:
                rerun.compare("", 0, entry, None)
            else:
                event = BY_INPUT.get((entry["position"]["topic"], entry["position"]["offset"]))
                if event is not None:
                    rerun.compare("", 0, entry, event)
        except (RecordError, KeyError, TypeError, ValueError):  # what `Replay.run` reports as unreadable
            continue


def test_the_journal_itself_is_sound() -> None:
    whole = records(-1, b"")
    assert any(b"desk-snapshot" in value for _, value in RECORDED)
    assert any(b'"instructions":[{' in value for _, value in RECORDED)
    assert (tell(whole), verified(whole)) == (0, 0)
    findings = Findings()
    rerun = Rerun()
    trail = Trail(TOPIC, 0, findings, rerun.declare)
    for record in whole:
        trail.take(record.offset, record.value)
    assert not findings.total


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(PLACES), st.sampled_from(SHORT) | st.none())
def test_whatever_stands_in_an_entry_no_reader_breaks(place: tuple[int, tuple[Any, ...]], name: str | None) -> None:
    number, path = place
    value = spoiled(number, path, None if name is None else VALUES[name])
    whole = records(number, value)
    for read in (tell, verified, replayed):
        try:
            read(whole)
        except NewerVersionError:  # whose schema version is a large number
            assert path == ("schema_version",)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("+49\x1b[2J\x1b]0;owned\x07", r"+49\x1b[2J\x1b]0;owned\x07"),
        ("a\nCall gw-1/9 was put through", r"a\nCall gw-1/9 was put through"),
        ("\x9b31m\u202e4321", r"\x9b31m\u202e4321"),
        ("[bold]sip:49123@[2001:db8:100::1][/bold]", "[bold]sip:49123@[2001:db8:100::1][/bold]"),
        ("Zoë 📞", "Zoë 📞"),
    ],
)
def test_what_callers_say_does_not_steer_a_terminal(said: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    Lines().print(f"caller {said}")
    assert capsys.readouterr().out == f"caller {shown}\n"


def test_a_callers_number_steers_no_terminal_wherever_it_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    at, path = next((at, path) for at, path in PLACES if path[-1] == "caller_form")
    entry = orjson.loads(RECORDED[at][1])
    entry["changes"][path[1]] |= {"caller": "+49\x1b[2J\n\u202e", "caller_form": "full"}
    found, _ = told(records(at, orjson.dumps(entry)))
    gathering = Gathering(["gw-1/1"])
    for one in found[:1]:
        gathering.take(one)
    table = table_of(gathering._telling.fold.desks.values())
    table_command._show(table, 2_000_000, timezone.utc, json=False)
    for line in render.whole(gathering.stories["gw-1/1"], 2_000_000, timezone.utc):
        Lines().print(line)
    out = capsys.readouterr().out
    assert out.count(r"+49\x1b[2J\n\u202e") == 3
    assert all(line.isprintable() for line in out.split("\n"))


def test_gaps_without_end_are_counted_and_not_kept() -> None:
    parser = Parser({TOPIC: JOURNAL}, Unreadable.SKIP, lambda _: None)
    entries = Entries(parser)
    at = next(at for at, (_, value) in enumerate(RECORDED) if b'"decision"' in value)
    for version in range(2, 2_002, 2):
        [record] = records(at, spoiled(at, ("version",), str(version)))[at : at + 1]
        assert entries.take(record) is not None
    assert (entries.gaps, len(entries.missing)) == (999, 20)


def test_each_wait_of_a_side_counts() -> None:
    totals = Totals()
    found, _ = told(records(-1, b""))
    telling = Telling()
    connections = [h for one in found for h in telling.take(one) if h.what is What.CONNECTED]
    for _ in range(150_000):
        totals.take(connections[0])
    assert totals.as_dict()["waits_ms"]["count"] == totals.counts["connected"] == 150_000


def test_what_was_said_before_is_remembered_by_its_hash() -> None:
    entries = Entries(Parser({TOPIC: JOURNAL}, Unreadable.SKIP, lambda _: None))
    whole = records(-1, b"")
    for record in [*whole, *whole]:
        entries.take(record)
    [remembered] = entries._seen.values()
    assert entries.repeated == len(remembered) == sum(b'"decision"' in value for _, value in RECORDED)
    assert {len(one) for one in remembered} == {32}


@pytest.mark.parametrize(
    "field",
    [{"attempts": "5"}, {"attempts": True}, {"call_lease_ms": 1.5}, {"nodes": [1]}, {"nodes": "a"}, {"fan_out": None}],
)
def test_what_is_no_policy_is_refused_before_anything_is_decided_by_it(field: dict[str, Any]) -> None:
    sound = Policy.of(PolicySettings())
    assert Policy.of_dict(orjson.loads(orjson.dumps(sound.as_dict()))) == sound
    with pytest.raises(TypeError, match=next(iter(field))):
        Policy.of_dict({**sound.as_dict(), **field})


def test_a_pause_is_reckoned_however_many_attempts_a_policy_allows() -> None:
    policy = dataclasses.replace(Policy.of(PolicySettings()), attempts=2**53)
    assert policy.backoff_after(2**52) == policy.backoff_max_ms


@pytest.mark.parametrize(
    "words",
    [
        ("replay", "--into", "there.toml", "--space", "inf"),
        ("replay", "--into", "there.toml", "--space", "nan"),
        ("replay", "--into", "there.toml", "--speed", "inf"),
        ("audit", "checkpoint", "--out", "here", "--every", "inf"),
    ],
)
def test_no_time_without_end_is_taken(words: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> None:
    assert main.main(list(words)) == 2
    assert f"Invalid value for '{words[-2]}'" in capfd.readouterr().err
