"""Records whose header names aren't UTF-8, on the real broker: without the guard nobody can read past them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from aiokafka.consumer import fetcher
from aiokafka.record.memory_records import MemoryRecords

from callyard import header_names
from callyard.guards import GuardError
from callyard.settings import KafkaSettings
from callyard.topics import partition_of, topics
from tests.support import events
from tests.support import kafka as on_kafka
from tests.support.streams import instructions, stream_worker

NAMES = (b"\xff\xfe", b"sound", b"\xed\xa0\x80x", b"n" * 4_000 + b"\xc3")
MENDED = ["??", "sound", "???x", "n" * 4_000 + "?"]


@pytest.fixture
def unguarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """aiokafka as it comes, whatever was done before; guarded again afterwards."""
    monkeypatch.setattr(fetcher, "MemoryRecords", MemoryRecords)
    monkeypatch.setattr(fetcher, "PartitionRecords", header_names.TolerantPartitionRecords.__mro__[1])
    monkeypatch.setattr(header_names, "tolerate", lambda: None)
    yield
    monkeypatch.undo()
    header_names.tolerate()


async def _write(settings: KafkaSettings, topic: str, partition: int = 0) -> None:
    await on_kafka.send_named(
        settings, topic, partition,
        (b"1", b"before", ()), (b"2", b"hostile", NAMES), (None, b"no key", ()), (b"4", None, (b"\xff",)),
    )  # fmt: skip


@pytest.mark.kafka
async def test_such_a_record_is_read_with_its_neighbours_as_they_came(kafka_settings: KafkaSettings) -> None:
    topic = topics(kafka_settings).rejected.name
    await _write(kafka_settings, topic)
    await on_kafka.send(kafka_settings, topic, ("5", b"after"))
    found = await on_kafka.read(kafka_settings, topic, enough=5)
    assert {(record.key, record.value) for record in found} == {
        (b"1", b"before"), (b"2", b"hostile"), (None, b"no key"), (b"4", None), (b"5", b"after"),
    }  # fmt: skip
    in_order = [record for record in found if record.partition == 0][:4]
    assert [record.offset for record in in_order] == [0, 1, 2, 3]
    assert in_order[1].headers == tuple((name, b"\xff") for name in MENDED)
    assert in_order[3].headers == (("?", b"\xff"),)


@pytest.mark.kafka
@pytest.mark.usefixtures("unguarded")
async def test_without_the_guard_nobody_reads_past_it(kafka_settings: KafkaSettings) -> None:
    topic = topics(kafka_settings).rejected.name
    await _write(kafka_settings, topic)
    for _ in range(2):
        with pytest.raises(UnicodeDecodeError):
            await on_kafka.read(kafka_settings, topic, enough=4)


@pytest.mark.kafka
async def test_a_stream_worker_reads_past_it(kafka_settings: KafkaSettings, tmp_path: Path) -> None:
    names = topics(kafka_settings)
    key = events.CONFERENCE.encode()
    partition = partition_of(key, kafka_settings.partitions)
    for topic, value in (
        (names.calls, events.parked().encode()),
        (names.registrations, events.registered().encode()),
        (names.timers, b"rubbish"),
    ):
        await on_kafka.send_named(kafka_settings, topic.name, partition, (key, value, NAMES))
    worker = stream_worker(kafka_settings, tmp_path / "stream.log")
    worker.start()
    try:
        await worker.ready(60)
        [instruction] = await instructions(kafka_settings, 1)
        await on_kafka.read(kafka_settings, names.rejected.name, enough=1)
        assert worker.running
    finally:
        await worker.stop()
    assert instruction.call_id == "gw-1/1"


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header_names, "PINNED", "0.99.0")
    with pytest.raises(GuardError, match=r"aiokafka is 0\.14\.0, not 0\.99\.0"):
        header_names.tolerate()


def test_the_pin_of_the_package_is_that_of_the_guard() -> None:
    project = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert f'"aiokafka=={header_names.PINNED}"' in project.partition("[project.optional-dependencies]")[0]
