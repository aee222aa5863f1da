"""The embedded Kafka on the real Java: starts, survives a crash, ends with its parent, explains what it cannot."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
import pytest_asyncio

from callyard import clients, topics
from callyard.errors import CommandError
from callyard.kafka import embedded, jars
from callyard.kafka.embedded import EmbeddedKafka, EmbeddedKafkaError, Listener
from callyard.processes import Child
from callyard.settings import KafkaSettings
from tests.chaos import proxy
from tests.support import kafka as support
from tests.support.ports import free_port
from tests.support.wait import until

pytestmark = pytest.mark.kafka


def alive(pid: int) -> bool:
    """Whether the process exists and isn't a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_a_killed_broker_comes_back_on_its_port_with_its_records(tmp_path: Path) -> None:
    async with embedded.running(tmp_path / "data") as kafka:
        settings = KafkaSettings(bootstrap_servers=kafka.bootstrap_servers, partitions=2)
        await support.create_topics(settings)
        calls = topics.topics(settings).calls.name
        await support.send(settings, calls, ("49123", b"before"))
        first = kafka.pid
        await kafka.kill()
        assert not alive(first)
        await kafka.start()
        assert kafka.bootstrap_servers == settings.bootstrap_servers
        await support.send(settings, calls, ("49123", b"after"))
        records = await support.read(settings, calls, enough=2)
        assert [record.value for record in records] == [b"before", b"after"]
        await kafka.stop()
        await kafka.start()
        assert len(await support.read(settings, calls)) == 2
        last = kafka.pid
    assert not alive(last)


async def test_a_starved_broker_keeps_its_partitions(tmp_path: Path) -> None:
    """There is nobody to give them to: without a leader nobody could write for seconds after it is served again."""
    async with embedded.running(tmp_path / "data") as kafka:
        settings = KafkaSettings(bootstrap_servers=kafka.bootstrap_servers, partitions=2)
        await support.create_topics(settings)
        os.kill(kafka.pid, signal.SIGSTOP)
        await asyncio.sleep(4)  # time itself is what is tried here
        os.kill(kafka.pid, signal.SIGCONT)
        await support.send(settings, topics.topics(settings).calls.name, ("49123", b"after"))
        assert "session has timed out" not in kafka.log.read_text()
        await kafka.kill()
        began = time.monotonic()
        await kafka.start()  # but after a crash no session of a minute is waited for
        assert time.monotonic() - began < 40


async def test_a_consumer_ends_though_the_broker_says_nothing_any_more(tmp_path: Path) -> None:
    async with embedded.running(tmp_path / "data") as kafka:
        settings = KafkaSettings(bootstrap_servers=kafka.bootstrap_servers, partitions=2, request_timeout_ms=60_000)
        await support.create_topics(settings)
        async with clients.consumer(settings, group_id="callyard-agent-gw-1") as consumer:
            consumer.subscribe([topics.topics(settings).dials.name])
            while not consumer.assignment():
                await consumer.getmany(timeout_ms=100)
            os.kill(kafka.pid, signal.SIGSTOP)
            began = time.monotonic()
        took = time.monotonic() - began
        os.kill(kafka.pid, signal.SIGCONT)
    assert took < clients.STOP_SECONDS + 2, "a worker's grace period is 12 s"


async def test_who_comes_through_a_proxy_stays_behind_it(tmp_path: Path) -> None:
    port = free_port()
    async with proxy.running(lambda: port) as between:
        listener = Listener(port, between.port)
        async with embedded.running(tmp_path / "data", listeners=[listener]) as kafka:
            direct = KafkaSettings(bootstrap_servers=kafka.bootstrap_servers, partitions=2)
            await support.create_topics(direct)
            calls = topics.topics(direct).calls.name
            assert between.accepted == 0, "the broker and its direct clients don't use it"
            behind = direct.model_copy(update={"bootstrap_servers": f"127.0.0.1:{between.port}"})
            async with clients.producer(behind, "test") as producer:
                await support.send_one(producer, calls, "49123", b"before")
                assert between.accepted > 1, "not only the first connection"
                await kafka.kill()
                await kafka.start()
                await support.send_one(producer, calls, "49123", b"after")
            records = await support.read(direct, calls, enough=2)
            assert [record.value for record in records] == [b"before", b"after"]


async def test_it_creates_no_topic_that_nobody_asked_for(kafka: EmbeddedKafka) -> None:
    async with clients.admin(KafkaSettings(bootstrap_servers=kafka.bootstrap_servers)) as admin:
        await admin.describe_topics(["nobody-asked-for-this"])
        assert "nobody-asked-for-this" not in await admin.list_topics()


async def test_a_second_one_in_the_same_folder_is_refused_and_harms_nothing(kafka: EmbeddedKafka) -> None:
    with pytest.raises(EmbeddedKafkaError, match="another Kafka works in the data folder"):
        await EmbeddedKafka(kafka.data).start()
    settings = KafkaSettings(bootstrap_servers=kafka.bootstrap_servers)
    async with clients.admin(settings) as admin:
        assert await admin.list_topics() is not None


async def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(EmbeddedKafkaError, match=rf"127\.0\.0\.1:{port}: another process took its port"):
            await EmbeddedKafka(tmp_path / "data", port).start()


async def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.odt").write_text("two years of work")
    with pytest.raises(EmbeddedKafkaError, match="holds something else"):
        await EmbeddedKafka(tmp_path).start()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.odt"]


async def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedKafkaError, match="cannot be used"):
        await EmbeddedKafka(tmp_path / "file" / "data").start()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def used_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of a broker that served and was stopped; to be copied."""
    folder = tmp_path_factory.mktemp("used") / "data"
    async with embedded.running(folder):
        pass
    return folder


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("records/meta.properties", "cluster.id=another\nnode.id=1\nversion=1\n", "of another Kafka"),
        ("records/meta.properties", None, "is damaged"),
        ("callyard-kafka.json", "{", "is damaged"),
        ("callyard-kafka.json", "{}", "is damaged"),
        ("callyard-kafka.json", None, "holds something else"),
        # What Kafka itself finds: the cause comes with the lines of its log.
        ("records/bootstrap.checkpoint", "rubbish", "did not start.*kafka.log"),
    ],
)
async def test_a_damaged_data_folder_is_explained(
    tmp_path: Path, used_folder: Path, name: str, content: str | None, message: str
) -> None:
    shutil.copytree(used_folder, tmp_path / "data")
    kafka = EmbeddedKafka(tmp_path / "data")
    damaged = tmp_path / "data" / name
    damaged.unlink()
    if content is not None:
        damaged.write_text(content)
    with pytest.raises(EmbeddedKafkaError, match=rf"(?s){message}"):
        await kafka.start()
    assert not kafka.running


async def test_java_that_dies_at_start_is_shown_with_its_last_words(tmp_path: Path) -> None:
    kafka = EmbeddedKafka(tmp_path / "data", properties={"num.network.threads": "none"})
    with pytest.raises(EmbeddedKafkaError, match=r"(?s)cannot be formatted.*num\.network\.threads"):
        await kafka.start()


async def test_jars_that_cannot_be_fetched_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLYARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(jars, "REPOSITORY", f"http://127.0.0.1:{free_port()}/maven2")
    said: list[str] = []
    with pytest.raises(CommandError, match="cannot be fetched") as raised:
        await asyncio.to_thread(embedded.prepare, said.append)
    assert len(said) == 1
    assert "HTTPS_PROXY" in str(raised.value)
    assert str(tmp_path / "cache" / f"kafka-{jars.KAFKA_VERSION}") in str(raised.value)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["kafka.lock"]


async def test_a_jar_that_was_altered_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = jars.folder()
    monkeypatch.setenv("CALLYARD_CACHE", str(tmp_path / "cache"))

    def fetched(repository: Path) -> list[Path]:
        repository.mkdir(parents=True)
        for name in jars.checksums():
            (repository / name).symlink_to(source / name)
        altered = repository / sorted(jars.checksums())[3]
        altered.unlink()
        altered.write_bytes(b"not what was released")
        return list(repository.iterdir())

    monkeypatch.setattr(jars, "download", fetched)
    with pytest.raises(CommandError, match="SHA-256 differs"):
        await asyncio.to_thread(embedded.prepare, lambda _: None)
    assert not jars.prepared()


async def test_the_command_serves_until_it_is_told_to_end(tmp_path: Path) -> None:
    command = Child(
        "kafka",
        [sys.executable, "-m", "callyard.main", "kafka", "--data", tmp_path / "data", "--port", "0", "--json"],
        log=tmp_path / "log",
    )
    command.start()
    try:
        facts = json.loads(await command.line(lambda line: line.startswith("{"), 60))
        await support.create_topics(KafkaSettings(bootstrap_servers=facts["bootstrap_servers"]))
        assert await command.stop(20) == 0
        assert not alive(facts["pid"])
    finally:
        await command.kill()


async def test_the_command_ends_when_its_broker_does(tmp_path: Path) -> None:
    command = Child(
        "kafka",
        [sys.executable, "-m", "callyard.main", "kafka", "--data", tmp_path / "data", "--port", "0", "--json"],
        log=tmp_path / "log",
    )
    command.start()
    try:
        facts = json.loads(await command.line(lambda line: line.startswith("{"), 60))
        os.kill(facts["pid"], signal.SIGKILL)
        assert await asyncio.wait_for(command.wait(), 20) == 1
        assert "was ended by SIGKILL" in (tmp_path / "log").read_text()
    finally:
        await command.kill()


async def test_a_broker_ends_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    command = Child(
        "kafka",
        [sys.executable, "-m", "callyard.main", "kafka", "--data", tmp_path / "data", "--port", "0", "--json"],
        log=tmp_path / "log",
    )
    command.start()
    facts = json.loads(await command.line(lambda line: line.startswith("{"), 60))
    await command.kill()
    await until(lambda: not alive(facts["pid"]), 20, "the broker has ended")
