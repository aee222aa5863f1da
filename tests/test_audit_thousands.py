"""Two thousand real calls through the whole pipeline, audited: verified, sealed, decided again, tampered with."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_asyncio
from aiokafka import AIOKafkaConsumer, TopicPartition
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from callyard import clients, topics
from callyard.parts import cluster, sipp
from callyard.parts.cluster import Cluster
from callyard.settings import KafkaSettings
from callyard.topics_command import ensure
from tests.support import kafka
from tests.support.kafka import callyard
from tests.support.streams import stream_worker
from tests.support.wait import until

pytestmark = [pytest.mark.kafka, pytest.mark.asterisk]

WAVES, WAVE, ROOMS, RATE = 8, 250, 10, 70
CALLS = WAVES * WAVE


@dataclass
class Site:
    """What was recorded, and the keys that it is sealed by."""

    settings: KafkaSettings
    environment: dict[str, str]
    directory: Path
    seconds: float
    """How long the calls took, all in all."""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    directory = tmp_path_factory.mktemp("thousands")
    async with cluster.running(directory, nodes=2, partitions=4) as running:
        environment = {**kafka.environment(running.settings), "CALLYARD_AUDIT_SIGNING_KEY_FILE": str(key(directory))}
        made = Site(running.settings, environment, directory, 0)
        began = time.monotonic()
        await asyncio.gather(*(calls_after(running, made, wave) for wave in range(WAVES)))
        made.seconds = time.monotonic() - began
        await until(lambda: nobody(environment), 30, what="the stream knows that all have hung up")
        for child in (running.agent, *(node.hook for node in running.nodes), running.stream):
            await child.stop()
        await checkpoint(made)
        yield made


async def nobody(environment: dict[str, str]) -> bool:
    """Whether the table has no caller any more."""
    status, out, err = await callyard(environment, "table", "--json")
    assert status == 0, err
    return not orjson.loads(out)["callers"]


AT_ONCE = asyncio.Semaphore(2)


async def calls_after(running: Cluster, made: Site, wave: int) -> None:
    """One wave at its turn; then, now and then, a checkpoint beside the calls."""
    async with AT_ONCE:
        await call(running, wave)
        if wave % 3 == 1:
            await checkpoint(made)


def key(directory: Path) -> Path:
    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = directory / "audit.key"
    path.write_bytes(pem)
    return path


async def call(running: Cluster, wave: int) -> None:
    """Callers wait in ten conferences, half of which are open before they call; all get in, and hang up."""
    rooms = [str(70_000 + wave * ROOMS + number) for number in range(ROOMS)]
    calls = [sipp.Call(f"+49{wave:02}{number:06}", f"{rooms[number % ROOMS]}#") for number in range(WAVE)]
    first, second = running.nodes
    for room in rooms[::2]:
        first.freeswitch.open(room)
    name = f"wave-{wave}"
    async with sipp.calling(running.directory / name, running.entrance, calls, name=name, rate=RATE) as callers:
        await callers.saw("answered", WAVE // 2, timeout=40)
        for room in rooms[1::2]:
            second.freeswitch.open(room)

        def inside() -> bool:
            return sum(event.conference in rooms for node in running.nodes for event in node.sip.talking()) == WAVE

        await until(inside, 60, what=f"all callers of wave {wave} in their conferences", every=0.2)
        await callers.hang_up()
    for node, own in ((first, rooms[::2]), (second, rooms[1::2])):
        for room in own:
            node.freeswitch.close(room)


async def checkpoint(site: Site) -> None:
    status, _, err = await callyard(site.environment, "audit", "checkpoint", "--out", str(site.directory / "sealed"))
    assert status == 0, err


@pytest.mark.asyncio(loop_scope="session")
async def test_two_thousand_calls_are_complete_unaltered_and_as_they_must_be(site: Site) -> None:
    words = ["audit", "verify", "--checkpoints", str(site.directory / "sealed")]
    status, out, err = await callyard(site.environment, *words, "--json")
    found = orjson.loads(out)
    assert (status, found["findings"]) == (0, {}), (err, found["first_findings"])
    assert found["stays"] == CALLS
    assert found["ended"] == {"conference-left": CALLS}
    assert found["outcomes"]["connected"] == CALLS
    assert found["waited_ms"]["count"] == found["waited_beside_the_conference_ms"]["count"] == CALLS
    assert found["waited_beside_the_conference_ms"]["p50"] < found["waited_ms"]["max"]
    assert (found["sealed"]["first"], found["sealed"]["altered"], found["sealed"]["expired"]) == (1, 0, 0)
    assert found["sealed"]["records"] == found["records"]
    status, out, err = await callyard(site.environment, "audit", "verify", "--json", "--processes", "1")
    alone = orjson.loads(out)
    status, out, err = await callyard(site.environment, "audit", "verify", "--json", "--processes", "3")
    shared = orjson.loads(out)
    assert (status, shared | {"seconds": 0}) == (0, alone | {"seconds": 0}), err
    assert alone | {"seconds": 0, "sealed": None} == found | {"seconds": 0, "sealed": None}
    assert (await callyard(site.environment, *words, "--processes", "2"))[0] == 2
    status, out, _ = await callyard(site.environment, *words)
    assert status == 0
    assert "Complete and unaltered from checkpoint 1 (" in out
    assert "All invariants hold." in out
    status, out, err = await callyard(site.environment, "audit", "verify", "--from", "-2d", "--to", "-1d")
    assert status == 3, out
    assert "holds nothing" in err


@pytest.mark.asyncio(loop_scope="session")
async def test_this_version_decides_the_same_again_and_another_policy_does_not(site: Site) -> None:
    status, out, err = await callyard(site.environment, "replay", "--json")
    found = orjson.loads(out)
    assert (status, found["differing"], found["not_compared"]) == (0, 0, {}), (err, found["differences"])
    assert found["compared"] > 4 * CALLS
    assert found["worded_otherwise"] == 0
    status, out, err = await callyard(site.environment, "replay", "--json", "--processes", "3")
    shared = orjson.loads(out)
    assert (status, shared | {"seconds": 0}) == (0, found | {"seconds": 0}), err
    other = site.directory / "other.toml"
    other.write_text("[policy]\ninstruction_deadline_seconds = 20\n")
    status, out, _ = await callyard(site.environment, "replay", "--policy", str(other))
    assert status == 1
    assert '"deadline_ms"' in out
    differing = [line for line in out.splitlines() if line.endswith("differ")]
    status, out, _ = await callyard(site.environment, "replay", "--policy", str(other), "--processes", "2")
    assert (status, [line for line in out.splitlines() if line.endswith("differ")]) == (1, differing)
    # One whose leases are the same but for a host that may not be dialled refuses registrations.
    other.write_text('[policy]\nallowed_nodes = "192.0.2.1"\n')
    status, out, _ = await callyard(site.environment, "replay", "--policy", str(other))
    assert status == 1
    assert "registered → refused" in out


@pytest.mark.asyncio(loop_scope="session")
async def test_the_same_calls_over_spaced_times(site: Site) -> None:
    """Each second becomes four minutes: hours in a past day, with hourly snapshots, on topics marked for replays."""
    settings = site.settings.model_copy(update={"topic_prefix": "replay-spaced"})
    await ensure(settings)
    target = site.directory / "spaced.toml"
    target.write_text(
        f'[kafka]\nbootstrap_servers = "{settings.bootstrap_servers}"\npartitions = 4\ntopic_prefix = "replay-spaced"\n'
    )
    begin = time.time() - 2 * 86400
    words = ["replay", "--into", str(target), "--space", "240", "--begin", moment(begin), "--json"]
    status, _, err = await callyard(site.environment, *words)
    assert status == 1
    assert "say --same-kafka" in err
    environment = {**site.environment, **kafka.environment(settings)}
    policy = {
        "POLICY_REGISTRATION_LEASE_SECONDS": "3600", "POLICY_CALL_LEASE_SECONDS": "86400",
        "POLICY_INSTRUCTION_DEADLINE_SECONDS": "300",
    }  # fmt: skip
    worker = stream_worker(settings, site.directory / "spaced.log", **policy)
    worker.start()
    try:
        await worker.ready(60)
        status, out, err = await callyard(site.environment, *words, "--same-kafka")
        assert status == 0, err
    finally:
        await worker.stop()
    original = orjson.loads((await callyard(site.environment, "audit", "verify", "--json"))[1])
    status, out, _ = await callyard(environment, "audit", "verify", "--json")
    spaced = orjson.loads(out)
    assert (status, spaced["first_findings"]) == (0, [])
    assert told(spaced) == told(original)
    longest = original["waited_ms"]["max"]
    assert spaced["waited_ms"]["max"] == pytest.approx(240 * longest, abs=240 * 2)
    # The second half alone: its desks are known from their beginnings, or from snapshots.
    half = ["--from", moment(begin + 240 * site.seconds / 2)]
    status, out, err = await callyard(environment, "replay", *half, "--json")
    found = orjson.loads(out)
    assert (status, found["differences"], found["not_compared"]) == (0, [], {}), err
    later = orjson.loads((await callyard(environment, "audit", "verify", *half, "--json"))[1])
    assert 0 < later["stays"] < spaced["stays"]
    assert found["compared"] == sum(later["inputs"].values()) < sum(spaced["inputs"].values())
    status, out, _ = await callyard(environment, "audit", "verify", "--from", "-1h")
    assert status == 3, "the present has nothing of it"


def moment(seconds: float) -> str:
    """As a command takes it. Not relative: two commands that are run one after the other would not mean the same."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def told(verified: dict[str, Any]) -> dict[str, Any]:
    """What became of the calls, but for attempts that came to nothing at the gateway.

    A redirect that Asterisk has not consumed by its deadline is followed by the next attempt, which Asterisk refuses;
    at a slow hour there are such, and how many depends on the pace of time.
    """
    nodes = {why: count for why, count in verified["failures"].items() if why != "not-parked"}
    connected = verified["outcomes"]["connected"]
    return {"stays": verified["stays"], "ended": verified["ended"], "connected": connected, "failures": nodes}


async def copied(site: Site, settings: KafkaSettings, altered: bool) -> None:
    """The journal in another Kafka's stead, as somebody who may write there would make it anew."""
    await kafka.delete_topics(settings)
    await until(lambda: gone(settings), what="deleted topics")
    await ensure(settings)
    names, source = topics.topics(settings), topics.topics(site.settings)
    async with clients.consumer(site.settings, auto_offset_reset="earliest") as consumer:
        for number in range(settings.partitions):
            records = await read(consumer, TopicPartition(source.journal.name, number))
            content = [(r.key, r.value, r.timestamp) for r in records]
            if altered:
                content = ALTERED[number](content)
            async with clients.producer(settings, "copy") as producer:
                sent = [
                    await producer.send(names.journal.name, value, key=k, partition=number, timestamp_ms=at)
                    for k, value, at in content
                ]
                await asyncio.gather(*sent)


async def gone(settings: KafkaSettings) -> bool:
    async with clients.admin(settings) as admin:
        return not any(name.startswith(settings.topic_prefix) for name in await admin.list_topics())


async def read(consumer: AIOKafkaConsumer, partition: TopicPartition) -> list[Any]:
    consumer.assign([partition])
    end = (await consumer.end_offsets([partition]))[partition]
    found: list[Any] = []
    while await consumer.position(partition) < end:
        found += (await consumer.getmany(partition, timeout_ms=200)).get(partition, [])
    return found


Content = list[tuple[bytes | None, bytes, int]]


def swapped(content: Content) -> Content:
    last = {key: n for n, (key, _, _) in enumerate(content)}
    first = max(n for n, (key, _, _) in enumerate(content) if key and n < last[key])
    after = last[content[first][0]]
    found = list(content)
    found[first], found[after] = found[after], found[first]
    return found


def changed(content: Content) -> Content:
    at = next(n for n, (_, value, _) in enumerate(content) if b'"outcome":"connected"' in value)
    who, value, when = content[at]
    return [*content[:at], (who, value.replace(b'"connected"', b'"convicted"'), when), *content[at + 1 :]]


def without_a_conference(content: Content) -> Content:
    who = next(key for key, _, _ in content if key)
    return [one for one in content if one[0] != who]


ALTERED = [swapped, changed, without_a_conference, lambda content: content[:-30]]


@pytest.mark.asyncio(loop_scope="session")
async def test_a_journal_that_was_made_anew_with_changes_is_found_out(site: Site) -> None:
    # There a record keeps the time that its writer gives, so that a forgery is as good as it can be.
    settings = site.settings.model_copy(update={"topic_prefix": "replay-forged"})
    await ensure(settings)
    environment = {**site.environment, "CALLYARD_KAFKA_TOPIC_PREFIX": settings.topic_prefix}
    sealed = str(site.directory / "sealed-copy")
    await copied(site, settings, altered=False)
    assert (await callyard(environment, "audit", "checkpoint", "--out", sealed))[0] == 0
    await copied(site, settings, altered=False)
    status, out, err = await callyard(environment, "audit", "verify", "--checkpoints", sealed)
    assert status == 0, (out, err)
    await copied(site, settings, altered=True)
    status, out, err = await callyard(environment, "audit", "verify", "--checkpoints", sealed, "--json")
    found = orjson.loads(out)
    assert status == 1, err
    texts = {f["where"]: f["text"] for f in found["first_findings"] if f["kind"] == "sealed"}
    assert {where: says(text) for where, text in texts.items()} == {
        "replay-forged.journal-0": "changed, swapped or replaced",
        "replay-forged.journal-1": "changed, swapped or replaced",
        "replay-forged.journal-2": "conferences are gone",
        "replay-forged.journal-3": "its tail was cut off",
    }
    assert found["findings"]["chain"] >= 2, "where it was changed, the chains tell"
    by_processes = [
        orjson.loads((await callyard(environment, "audit", "verify", "--json", "--processes", count))[1])
        for count in ("1", "2")
    ]
    assert by_processes[0]["findings"] == by_processes[1]["findings"]
    async with clients.producer(settings, "newer") as producer:
        newer = orjson.dumps({"type": "decision", "schema_version": 99})
        await producer.send_and_wait(topics.topics(settings).journal.name, newer, partition=1)
    for processes in ("1", "2"):  # one share's failure is that of all
        status, _, err = await callyard(environment, "replay", "--processes", processes)
        assert status == 5, err
        assert "replay-forged.journal-1@" in err
        assert "Traceback" not in err


def says(text: str) -> str:
    known: Sequence[str] = ("changed, swapped or replaced", "conferences are gone", "its tail was cut off")
    return next((one for one in known if one in text), text)
