"""A time range of topics: what is in it, in which order, and the words and exit statuses where something is wrong."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
from aiokafka import ConsumerRecord, TopicPartition
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from callyard.errors import CommandError
from callyard.records import TIMERS, DeadlinePassed
from callyard.settings import KafkaSettings
from callyard.topics import topics
from streams.audit.reading import (
    EmptyRangeError,
    NewerVersionError,
    Parser,
    Span,
    Unreadable,
    UnreadableError,
    _Merge,
    reading,
    span,
    warner,
)
from streams.audit.story_command import _span
from streams.audit.times import MomentError, lasted, moment, shown, zone_of
from tests.support import kafka

NOW = 1_800_000_000_000


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("now", NOW),
        ("-2h", NOW - 7_200_000),
        ("-1d12h", NOW - 129_600_000),
        ("-90s", NOW - 90_000),
        ("2027-01-15T08:00:00Z", NOW),
        ("2027-01-15 09:00:00+01:00", NOW),
        ("2027-01-15T08:00:00.2509Z", NOW + 250),
    ],
)
def test_a_moment_is_read(text: str, at: int) -> None:
    assert moment(text, NOW) == at


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("2027-01-15T08:00:00", "names no zone: add Z"),
        ("2h", "is no time"),
        ("-", "is no time"),
        ("-2h30", "is no time"),
        ("yesterday", "is no time"),
        ("2027-02-30T08:00:00Z", "is no time"),
    ],
)
def test_what_is_no_moment_says_what_to_write(text: str, said: str) -> None:
    with pytest.raises(MomentError, match=said):
        moment(text, NOW)


def test_moments_are_shown_with_their_zone() -> None:
    assert shown(NOW + 5) == "2027-01-15T08:00:00.005Z"
    assert shown(NOW, zone_of("Europe/Berlin")) == "2027-01-15T09:00:00.000+01:00"
    with pytest.raises(MomentError, match="no time zone"):
        zone_of("Mars/Olympus")


@pytest.mark.parametrize(
    ("ms", "text"), [(7, "7 ms"), (3_240, "3.2 s"), (245_999, "4 min 5 s"), (7_380_000, "2 h 3 min"), (-7, "-7 ms")]
)
def test_durations_are_shown(ms: int, text: str) -> None:
    assert lasted(ms) == text


def test_a_range_that_ends_before_it_begins_is_empty() -> None:
    assert span("-2h", "-1h", NOW) == Span(NOW - 7_200_000, NOW - 3_600_000)
    for start, end in (("-1h", "-2h"), ("now", None)):
        with pytest.raises(EmptyRangeError, match="is empty"):
            span(start, end, NOW)


def _record(partition: int, offset: int, timestamp: int) -> ConsumerRecord:
    return ConsumerRecord("t", partition, offset, timestamp, 1, None, b"", None, 0, 0, ())


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 3)), max_size=12), min_size=1, max_size=4),
    st.integers(1, 4),
)
def test_partitions_are_merged_in_the_same_order_however_they_are_fetched(
    logs: Sequence[Sequence[tuple[int, int]]], size: int
) -> None:
    stored: dict[TopicPartition, list[ConsumerRecord]] = {}
    for number, log in enumerate(logs):
        offset, records = 0, []
        for stamp, step in log:  # gaps, as compaction and transactions leave them; a clock that was set back
            records.append(_record(number, offset, stamp))
            offset += step
        stored[TopicPartition("t", number)] = records
    ends = {partition: records[-1].offset + 1 if records else 0 for partition, records in stored.items()}

    merge = _Merge({partition: (0, end) for partition, end in ends.items()})
    left = {partition: list(records) for partition, records in stored.items()}
    merged: list[ConsumerRecord] = []
    while merge.open:
        for partition in sorted(merge.missing):
            merge.put(partition, left[partition][:size])
            del left[partition][:size]
        merged += merge.take()

    assert merge.taken == sum(ends.values())
    expected = []
    for partition, records in stored.items():
        latest = 0
        for record in records:
            latest = max(latest, record.timestamp)
            expected.append(((latest, partition, record.offset), record))
    assert merged == [record for _, record in sorted(expected, key=lambda one: one[0])]


def _timer(number: int) -> tuple[str, DeadlinePassed]:
    conference = str(60_000 + number % 7)
    return conference, DeadlinePassed(sender="test", conference=conference, due_ms=number)


async def test_a_range_of_a_topic_is_found_by_time(kafka_settings: KafkaSettings) -> None:
    timers = topics(kafka_settings).timers.name
    await kafka.send(kafka_settings, timers, *(_timer(number) for number in range(40)))
    stored = await kafka.read(kafka_settings, timers)
    start, end = stored[10].timestamp, stored[30].timestamp
    wanted = [record.value for record in stored if start <= record.timestamp < end]
    assert wanted

    async with reading(kafka_settings, [timers], Span(start, end)) as found:
        await kafka.send(kafka_settings, timers, _timer(99))  # after the start: not in it
        assert [record.value async for record in found.records()] == wanted
        assert found.total == len(wanted)
    async with reading(kafka_settings, [timers]) as found:
        assert [record.value async for record in found.records()][:40] == [record.value for record in stored]
        assert found.total == 41
    one = stored[0].partition
    async with reading(kafka_settings, [timers], partitions=[one]) as found:
        assert {record.partition async for record in found.records()} == {one}
    async with reading(kafka_settings, [timers], Span(None, start - 60_000)) as found:
        with pytest.raises(EmptyRangeError, match="its oldest record is of"):
            found.require_any()


async def test_a_missing_topic_is_named(kafka_settings: KafkaSettings) -> None:
    with pytest.raises(CommandError, match="nothing-here: no such topic"):
        async with reading(kafka_settings, ["nothing-here"]):
            pass


async def test_what_is_unreadable_is_reported_with_its_place(kafka_settings: KafkaSettings) -> None:
    timers = topics(kafka_settings).timers.name
    conference, good = _timer(1)
    newer = good.encode().replace(b'"schema_version":1', b'"schema_version":2')
    await kafka.send(kafka_settings, timers, *((conference, value) for value in (good, b"rubbish", None, good, newer)))  # type: ignore[arg-type]
    said: list[str] = []
    skipping = Parser({timers: TIMERS}, Unreadable.SKIP, said.append)
    failing = Parser({timers: TIMERS}, Unreadable.FAIL, said.append)
    async with reading(kafka_settings, [timers]) as found:
        records = [record async for record in found.records()]
    number = records[0].partition

    assert [skipping.read(record) for record in records[:4]] == [good, None, None, good]
    assert skipping.skipped == 2
    assert [line.split(":")[0] for line in said] == [
        f"{timers}-{number}@1 is unreadable and skipped",
        f"{timers}-{number}@2 is unreadable and skipped",
    ]
    with pytest.raises(UnreadableError, match=f"{timers}-{number}@1 is unreadable: not JSON") as unreadable:
        failing.read(records[1])
    with pytest.raises(NewerVersionError, match=f"{timers}-{number}@4: schema version 2 is newer") as newer_one:
        skipping.read(records[4])
    assert (EmptyRangeError.status, unreadable.value.status, newer_one.value.status) == (3, 6, 5)


def test_a_flood_of_complaints_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    say = warner(Console(), most=2)
    for number in range(5):
        say(f"line {number}")
    assert capsys.readouterr().out.splitlines() == ["line 0", "line 1", "… and more; see the count at the end"]


def test_the_range_of_a_call_is_the_day_after_its_beginning_wherever_that_is() -> None:
    now, hour = int(time.time()), 3_600
    old = now - 20 * 24 * hour
    assert _span(None, None, f"gw-1/{old}.12") == Span((old - hour) * 1000, (old + 25 * hour) * 1000)
    assert _span(None, None, f"gw-1/{now - hour}.12") == Span((now - 2 * hour) * 1000, None)
    given = _span(None, "-1h", f"gw-1/{old}.12")
    assert given.end_ms is not None
    assert abs(given.end_ms - (now - hour) * 1000) < 60_000
    asked = _span("-30d", None, f"gw-1/{old}.12")
    assert (asked.end_ms, asked.start_ms is not None and asked.start_ms < old * 1000) == (None, True)
