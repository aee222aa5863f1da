"""Rubbish in Kafka itself, by the commands as an operator types them: named with its place, skipped, or fatal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import orjson
import pytest
import pytest_asyncio

from callyard import clients, main
from callyard.settings import KafkaSettings
from callyard.topics import partition_of, topics
from streams.rows import StayRow, StayState, encode
from tests.support import kafka
from tests.test_audit_hostile import PLACES, RECORDED, spoiled

pytestmark = pytest.mark.kafka

CALLED = "49123"
RUBBISH: Sequence[bytes | None] = (
    b"rubbish",
    b'{"type":"decision","schema_version":1}',
    b'{"type":["decision"],"schema_version":1}',
    b'{"type":"epoch-began","schema_version":1,"partition":0,"epoch":"one","worker":"w","policy_digest":"x"}',
    b'{"type":"policy-declared","schema_version":1,"partition":0,"digest":"x","policy":[]}',
    spoiled(*next((at, path) for at, path in PLACES if path[-1] == "since_ms"), '"yesterday"'),
    spoiled(*next((at, path) for at, path in PLACES if path[-1] == "said"), '{"reason":[1]}'),
    b"[" * 5_000,
    b'{"type":"decision","schema_version":1,"why":' + b"[" * 900 + b"]" * 900 + b"}",
    None,
)
NEWER = orjson.dumps({"type": "decision", "schema_version": 99})
Run = Callable[..., tuple[int, str, str]]

READERS: Sequence[tuple[str, ...]] = (
    ("audit", "call", "gw-1/1", "--from", "-1h"),
    ("audit", "call", "--conference", CALLED),
    ("audit", "conference", CALLED),
    ("audit", "gateway", "gw-1", "--json"),
    ("audit", "node", "node-1"),
    ("audit", "verify", "--json"),
    ("table", "--as-of", "now"),
    ("export", "calls"),
    ("export", "registrations", "--format", "csv"),
    ("export", "journal"),
    ("replay", "--processes", "1"),
)


async def send(settings: KafkaSettings, topic: str, *records: tuple[bytes | None, bytes | None]) -> None:
    """Into the partition of the conference, whatever their keys are."""
    number = partition_of(CALLED.encode(), settings.partitions)
    async with clients.producer(settings, "rubbish") as producer:
        for key, value in records:
            await producer.send_and_wait(topic, value, key=key, partition=number)


@pytest_asyncio.fixture
async def journal(kafka_settings: KafkaSettings) -> AsyncIterator[KafkaSettings]:
    """A journal with rubbish between its records, under the conference's own key."""
    name = topics(kafka_settings).journal.name
    await send(kafka_settings, name, *RECORDED[:4], *((CALLED.encode(), one) for one in RUBBISH), *RECORDED[4:])
    yield kafka_settings


@pytest.fixture
def run(kafka_settings: KafkaSettings, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a command as an operator does: exit status, standard output, standard error."""
    for name, value in kafka.environment(kafka_settings).items():
        monkeypatch.setenv(name, value)

    def command(*words: str) -> tuple[int, str, str]:
        status = main.main(list(words))
        return status, *capfd.readouterr()

    return command


def test_what_is_unreadable_in_the_journal_is_named_and_skipped(journal: KafkaSettings, run: Run) -> None:
    number = partition_of(CALLED.encode(), journal.partitions)
    places = [f"{topics(journal).journal.name}-{number}@{4 + at} " for at in range(len(RUBBISH))]
    for words in READERS:
        status, out, err = run(*words)
        assert status in {0, 1, 7}, (words, status, err)
        assert [place for place in places if place not in err] == [], (words, err)
        assert "Traceback" not in err
        assert out
        status, _, err = run(*words, "--unreadable", "fail")
        assert status == 6, (words, err)
        assert any(place in err for place in places)


def test_what_a_newer_version_wrote_ends_an_audit_with_a_status_of_its_own(journal: KafkaSettings, run: Run) -> None:
    asyncio.run(send(journal, topics(journal).journal.name, (CALLED.encode(), NEWER)))
    for words in READERS:
        status, _, err = run(*words)
        assert (status, "upgrade this program" in err) == (5, True), (words, err)


async def test_no_rubbish_is_replayed_into_another_kafka(journal: KafkaSettings, tmp_path: Path) -> None:
    target = journal.model_copy(update={"topic_prefix": f"replay-{journal.topic_prefix}"})
    file = tmp_path / "target.toml"
    file.write_text("[kafka]\n" + "".join(f'{name} = "{value}"\n' for name, value in (
        ("bootstrap_servers", target.bootstrap_servers), ("topic_prefix", target.topic_prefix),
    )) + f"partitions = {target.partitions}\n")  # fmt: skip
    words = ("replay", "--into", str(file), "--same-kafka")
    try:
        status, _, err = await kafka.callyard(kafka.environment(journal), *words, "--unreadable", "fail")
        assert status == 6, err
        await send(journal, topics(journal).journal.name, (CALLED.encode(), NEWER))
        status, _, err = await kafka.callyard(kafka.environment(journal), *words)
        assert status == 5, err
        assert "is unreadable and skipped" in err
        assert "Traceback" not in err
    finally:
        await kafka.delete_topics(target)


ROW = StayRow("gw-1/7", "gw-1", 1, StayState.LEFT, 1, 2, caller="+4930777")


@pytest_asyncio.fixture
async def changelog(kafka_settings: KafkaSettings) -> AsyncIterator[KafkaSettings]:
    """A table's changelog with rubbish in it."""
    sound = encode(ROW)
    await send(
        kafka_settings, topics(kafka_settings).changelog.name, (b"0|49123|s|gw-1/7", sound),
        *((key, sound) for key in (b"", b"\xff\xfe", b"0", b"x|49123|s|y", b"0|49123", b"0|49123|z|y")),
        *((b"0|49123|s|gw-1/8", value) for value in (b"rubbish", b"[]", b"{}", sound.replace(b'"left"', b'"flying"'))),
        *((b"0|@", value) for value in (b"{}", b'{"applied":[]}', b'{"applied":{"t":"x"}}')),
    )  # fmt: skip
    yield kafka_settings


@pytest.mark.usefixtures("changelog")
def test_rubbish_in_the_changelog_is_named_and_skipped(run: Run) -> None:
    for words in (("table",), ("table", "--json"), ("audit", "forget", "+4930777")):
        status, out, err = run(*words)
        assert (status, "Traceback" in err) == (0, False), err
        assert out
        assert err.count("is unreadable and skipped") == 13
    assert run("table", "--unreadable", "fail")[0] == 6


async def test_a_consumer_that_is_stopped_at_once_lets_the_error_through(kafka_settings: KafkaSettings) -> None:
    with pytest.raises(KeyError):
        async with clients.consumer(kafka_settings):
            raise KeyError
