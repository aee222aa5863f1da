"""``callyard status`` on the real broker with real workers: it says when all is well, and names what is wrong."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from callyard import topics
from callyard.kafka.embedded import EmbeddedKafka
from callyard.main import main
from callyard.parts.freeswitch import FreeSwitch
from callyard.settings import KafkaSettings
from streams.audit.status import Gateway, Group, Lag, Member, Status, ranges
from tests.conftest import unique_settings
from tests.support import kafka as on_kafka
from tests.support.agent import GATEWAY, agent, dial, instruct, logged, running
from tests.support.ami import ami_double
from tests.support.events import CONFERENCE, parked, registered
from tests.support.hook import hook
from tests.support.ports import free_port
from tests.support.streams import stream_worker
from tests.support.wait import until

pytestmark = pytest.mark.timeout(120)


class Asked:
    """The command, asked by who has these settings."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capfd = capfd

    async def text(self, settings: KafkaSettings, *words: str) -> tuple[int, str]:
        for name, value in on_kafka.environment(settings).items():
            self._monkeypatch.setenv(name, value)
        self._capfd.readouterr()
        status = await asyncio.to_thread(main, ["status", *words])
        out, err = self._capfd.readouterr()
        assert err == ""
        return status, out

    async def __call__(self, settings: KafkaSettings, *words: str) -> tuple[int, dict[str, Any]]:
        status, out = await self.text(settings, "--json", *words)
        return status, json.loads(out)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Asked:
    return Asked(monkeypatch, capfd)


def found(answer: dict[str, Any], level: str) -> list[tuple[str, str]]:
    return [(finding["check"], finding["text"]) for finding in answer["findings"] if finding["level"] == level]


@pytest.mark.kafka
async def test_all_is_well_and_then_workers_go_one_by_one(
    kafka_settings: KafkaSettings, tmp_path: Path, asked: Asked
) -> None:
    streams = [stream_worker(kafka_settings, tmp_path / f"stream-{number}.log") for number in (1, 2)]
    async with ami_double() as ami, FreeSwitch() as freeswitch:
        agents = [agent(kafka_settings, ami.settings(), tmp_path / f"agent-{number}.log") for number in (1, 2)]
        node = hook(kafka_settings, freeswitch.port, tmp_path / "hook.log")
        async with running(*streams, *agents, node):
            freeswitch.open("41111")
            waits = parked("1.1", conference="42222")
            await on_kafka.send(kafka_settings, topics.topics(kafka_settings).calls.name, (waits.conference, waits))

            async def decided() -> dict[str, Any] | None:
                status, answer = await asked(kafka_settings)
                return answer if (status, answer["registrations"], answer["callers"]) == (0, 1, {"parked": 1}) else None

            answer = await until(decided, 30, every=0.2)
            assert answer is not None
            assert [finding["level"] for finding in answer["findings"]] == ["fine"]
            assert not answer["wrong"]
            members = answer["stream"]["members"]
            assert sorted(number for member in members for number in member["partitions"]) == [0, 1, 2]
            assert {member["client"].rpartition(":")[2] for member in members} == {str(one.pid) for one in streams}
            [gateway] = answer["gateways"]
            assert (gateway["id"], gateway["callers"], len(gateway["group"]["members"])) == (GATEWAY, 1, 2)
            [owner] = [one for one in agents if logged(one, "speaking for the gateway")]
            assert gateway["owner"]["client"] == f"agent-{GATEWAY}-{owner.pid}"
            assert {name: lag["undecided"] for name, lag in answer["inputs"].items()} == {
                topic.name: 0 for topic in topics.topics(kafka_settings).inputs
            }
            calls = topics.topics(kafka_settings).calls.name
            assert 0 <= time.time() * 1000 - answer["newest_ms"][calls] < 60_000
            assert answer["newest_ms"][topics.topics(kafka_settings).rejected.name] is None

            status, text = await asked.text(kafka_settings)
            assert status == 0
            assert f"Kafka at {kafka_settings.bootstrap_servers}: 1 registrations, 1 callers parked" in text
            assert "nothing is wrong" in text
            assert f"{GATEWAY}     agent-{GATEWAY}-{owner.pid} at 127.0.0.1" in text

            await streams[0].stop()
            status, answer = await settled(asked, kafka_settings)
            assert (status, found(answer, "warning")) == (
                0, [("stream", "there is one stream worker: nobody is put through while it restarts")],
            )  # fmt: skip
            await streams[1].stop()
            status, answer = await asked(kafka_settings)
            assert (status, found(answer, "wrong")) == (1, [("stream", "no stream worker runs: nobody is put through")])
            for one in agents:
                await one.stop()
            status, answer = await asked(kafka_settings)
            assert (status, found(answer, "wrong")[1]) == (1, ("gateway", "gw-1: no agent runs; 1 callers are there"))
            assert f"kafka-consumer-groups --delete --group {kafka_settings.topic_prefix}-agent-gw-1" in str(answer)
            await until(lambda: node.running)


async def settled(asked: Asked, settings: KafkaSettings) -> tuple[int, dict[str, Any]]:
    """The answer once the group has given out its partitions."""

    async def stable() -> tuple[int, dict[str, Any]] | None:
        status, answer = await asked(settings)
        return (status, answer) if answer["stream"]["state"] == "Stable" else None

    answer = await until(stable, 30, every=0.2)
    assert answer is not None
    return answer


@pytest.mark.kafka
async def test_a_stream_that_falls_behind(kafka_settings: KafkaSettings, tmp_path: Path, asked: Asked) -> None:
    child = stream_worker(kafka_settings, tmp_path / "stream.log", STREAM_SESSION_SECONDS="60")
    name = topics.topics(kafka_settings).registrations.name
    async with running(child):
        child.send_signal(signal.SIGSTOP)
        await on_kafka.send(kafka_settings, name, *((CONFERENCE, registered(f"i-{n}")) for n in range(5)))
        began = time.monotonic()
        status, answer = await asked(kafka_settings, "--patience", "2")
        assert time.monotonic() - began > 2
        assert (status, found(answer, "wrong")) == (
            1, [("stream", f"{name}: 5 records are undecided since 2 s or longer")],
        )  # fmt: skip
        assert answer["inputs"][name] == {"undecided": 5, "stale": 5}
        child.send_signal(signal.SIGCONT)
        status, answer = await asked(kafka_settings, "--patience", "20")
        assert (status, answer["inputs"][name]) == (0, {"undecided": 0, "stale": 0})


@pytest.mark.kafka
async def test_an_agent_that_reads_no_instructions(kafka_settings: KafkaSettings, tmp_path: Path, asked: Asked) -> None:
    child = agent(kafka_settings, (await unreachable_ami()), tmp_path / "agent.log")
    child.start()
    try:
        await child.line(lambda line: "instructions read to their end" in line, 30)
        status, answer = await asked(kafka_settings, "--patience", "1")
        assert [text for check, text in found(answer, "wrong") if check == "gateway"] == []
        child.send_signal(signal.SIGSTOP)
        await instruct(kafka_settings, dial(parked(), "sip:49123@192.0.2.7:5060"))
        status, answer = await asked(kafka_settings, "--patience", "1")
        assert status == 1
        assert ("gateway", "gw-1: 1 instructions wait since 1 s or longer") in found(answer, "wrong")
        child.send_signal(signal.SIGCONT)
    finally:
        await child.stop()


async def unreachable_ami() -> Any:
    async with ami_double() as ami:
        return ami.settings()


@pytest.mark.kafka
async def test_topics_that_are_missing_or_wrong(kafka: EmbeddedKafka, asked: Asked) -> None:
    settings = unique_settings(kafka)
    status, answer = await asked(settings)
    wrong = [text for check, text in found(answer, "wrong") if check == "topics"]
    assert (status, len(wrong)) == (1, 7)
    assert all("is missing" in text for text in wrong)
    assert answer["stream"]["members"] == []
    await on_kafka.create_topics(settings)
    status, answer = await asked(settings.model_copy(update={"partitions": 5}))
    wrong = [text for check, text in found(answer, "wrong") if check == "topics"]
    assert (status, len(wrong)) == (1, 7)
    assert all("has 3 partitions" in text for text in wrong)
    await on_kafka.delete_topics(settings)


async def test_kafka_that_does_not_answer(asked: Asked) -> None:
    settings = KafkaSettings(bootstrap_servers=f"127.0.0.1:{free_port()}")
    status, answer = await asked(settings)
    assert status == 1
    assert answer["unreachable"].startswith(f"no Kafka answers at {settings.bootstrap_servers}")
    assert found(answer, "wrong") == [("kafka", answer["unreachable"])]
    status, text = await asked.text(settings)
    assert (status, text.count("\n")) == (1, 2)


ONE, TWO = Member("stream:a:1", "192.0.2.1", (0, 1)), Member("stream:b:2", "192.0.2.2", (2,))


def seen(**changes: Any) -> Status:
    """A site that is well, but for these changes."""
    values = {
        "partitions": 3,
        "stream": Group("callyard-stream", "Stable", (ONE, TWO)),
        "rejected": "callyard.rejected",
    }
    return Status("127.0.0.1:9092", 10_000_000, 5, **{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({}, "fine", "nothing is wrong"),
        ({"stream": Group("s", "PreparingRebalance", (ONE, TWO))}, "warning", "giving out its partitions"),
        ({"stream": Group("s", "Stable", (ONE, Member("c", "h", ())))}, "wrong", "nobody decides for partitions 2"),
        ({"gateways": [Gateway("g", Group("a", "Stable", (ONE,)), 2, Lag(0, 0), 3)]}, "wrong",
         "g: no agent speaks for it; 3 callers"),
        ({"gateways": [Gateway("g", Group("a", "Stable", (TWO,)), 2, Lag(4, 0), 3)]}, "fine", "nothing is wrong"),
        ({"stuck": tuple("123456")}, "warning", "half a minute: 1, 2, 3, 4, 5 …"),
        ({"newest_ms": {"callyard.rejected": 9_000_000}}, "warning", "set aside onto callyard.rejected"),
        ({"newest_ms": {"callyard.rejected": 6_000_000}}, "fine", "nothing is wrong"),
        ({"blind": ["this user may not look"]}, "wrong", "may not look"),
    ],
)  # fmt: skip
def test_what_is_seen_is_judged(changes: dict[str, Any], level: str, words: str) -> None:
    [finding] = seen(**changes).findings()
    assert finding.level.value == level
    assert words in finding.text
    assert bool(finding.advice) == (level != "fine")
    assert seen(**changes).as_dict()["wrong"] == (level == "wrong")


def test_numbers_in_short() -> None:
    assert [ranges(numbers) for numbers in ([], [3], [0, 1], [0, 1, 2, 5, 7, 8])] == ["", "3", "0-1", "0-2, 5, 7-8"]
