"""``callyard hook`` as a process, between the double of FreeSWITCH and the real Kafka."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaConsumer

from callyard import topics
from callyard.parts.freeswitch import FreeSwitch
from callyard.processes import free_port
from callyard.records import ConferenceRegistered, RegistrationRecord, Source
from callyard.settings import KafkaSettings
from tests.support import hostile
from tests.support import kafka as kafka_support
from tests.support.hook import events, hook, read, registrations, running, words
from tests.support.wait import until

pytestmark = pytest.mark.kafka


@pytest_asyncio.fixture
async def freeswitch() -> AsyncIterator[FreeSwitch]:
    async with FreeSwitch() as double:
        yield double


@pytest.mark.parametrize("fmt", ["plain", "json"])
async def test_a_conference_is_registered_when_it_begins_and_unregistered_when_it_ends(
    fmt: str, freeswitch: FreeSwitch, kafka_settings: KafkaSettings, tmp_path: Path
) -> None:
    async with running(hook(kafka_settings, freeswitch.port, tmp_path / "log", ESL_EVENT_FORMAT=fmt)):
        written = freeswitch.open("49123")
        [registered] = await registrations(kafka_settings, 1)
        freeswitch.close(written.instance)
        _, unregistered = await registrations(kafka_settings, 2)
    assert isinstance(registered, ConferenceRegistered)
    assert registered.sip_uri == "sip:49123@192.0.2.7:5060;transport=tcp"
    assert (registered.sender, registered.node_id, registered.source) == ("hook:node-1", "node-1", Source.FREESWITCH)
    assert registered.opened_at_ms is not None
    assert abs(registered.opened_at_ms - written.wall_ns // 1_000_000) <= 1
    assert words(unregistered) == f"- 49123 {written.instance} ended"
    assert unregistered.sender_sequence > registered.sender_sequence


@pytest.mark.parametrize("count", [10, 40])
async def test_conferences_that_begin_at_the_same_moment_are_all_registered_at_once(
    count: int, freeswitch: FreeSwitch, kafka_settings: KafkaSettings, tmp_path: Path
) -> None:
    name = topics.topics(kafka_settings).registrations.name
    async with running(hook(kafka_settings, freeswitch.port, tmp_path / "log")) as child:
        async with kafka_support.reader(kafka_settings, name) as consumer:
            written = [freeswitch.open(str(50000 + number)) for number in range(count)]
            records = await _consume(consumer, count)
        await until(lambda: len(events(child, "conference registered")) == count, what="all of them in the log")
        logged = events(child, "conference registered")
    assert {record.instance_id for record in records} == {one.instance for one in written}
    # The predecessor took a minute for each. What it takes here is the bench's to say; this is only far from that.
    assert max(fields["seconds"] for fields in logged) < 5


async def test_conferences_older_than_the_hook_are_registered_before_it_is_ready(
    freeswitch: FreeSwitch, kafka_settings: KafkaSettings, tmp_path: Path
) -> None:
    older = [freeswitch.open(number).instance for number in ("49123", "49124", "99999")]
    async with running(hook(kafka_settings, freeswitch.port, tmp_path / "log")):
        found = await registrations(kafka_settings)
    assert {words(record) for record in found} == {f"+ 49123 {older[0]}", f"+ 49124 {older[1]}"}


async def test_what_happens_while_the_hook_is_cut_off_is_made_up_for(
    freeswitch: FreeSwitch, kafka_settings: KafkaSettings, tmp_path: Path
) -> None:
    async with running(hook(kafka_settings, freeswitch.port, tmp_path / "log")):
        ends, stays = freeswitch.open("41111").instance, freeswitch.open("42222").instance
        await registrations(kafka_settings, 2)
        freeswitch.drop_connections()
        freeswitch.forget(ends)
        begins = freeswitch.open("43333").instance
        found = await registrations(kafka_settings, 4)
    assert sorted(words(record) for record in found[2:]) == [f"+ 43333 {begins}", f"- 41111 {ends} ended"]
    assert stays not in [record.instance_id for record in found[2:]]


async def test_a_short_cut_unregisters_nothing(
    freeswitch: FreeSwitch, kafka_settings: KafkaSettings, tmp_path: Path
) -> None:
    async with running(hook(kafka_settings, freeswitch.port, tmp_path / "log")) as child:
        stays = freeswitch.open("42222").instance
        await registrations(kafka_settings, 1)
        for cut in range(3):
            freeswitch.drop_connections()
            await until(lambda cut=cut: len(events(child, "following FreeSWITCH")) == 2 + cut)  # type: ignore[misc]
        marker = freeswitch.open("43333").instance
        found = await registrations(kafka_settings, 2)
    assert [words(record) for record in found] == [f"+ 42222 {stays}", f"+ 43333 {marker}"]


async def test_freeswitch_is_killed_and_comes_back(
    freeswitch: FreeSwitch, kafka_settings: KafkaSettings, tmp_path: Path
) -> None:
    async with running(hook(kafka_settings, freeswitch.port, tmp_path / "log")) as child:
        lost = [freeswitch.open(number).instance for number in ("41111", "42222")]
        await registrations(kafka_settings, 2)
        killed_at = time.monotonic()
        freeswitch.kill()
        found = await registrations(kafka_settings, 4)
        seconds = time.monotonic() - killed_at
        [told] = events(child, "cannot follow FreeSWITCH, trying again")
        await freeswitch.listen()
        await freeswitch.subscribers()
        anew = freeswitch.open("41111").instance
        last = (await registrations(kafka_settings, 5))[-1]
    assert {words(record) for record in found[2:]} == {f"- 41111 {lost[0]} lost", f"- 42222 {lost[1]} lost"}
    assert seconds < 5, "the predecessor sent callers to the dead node for 30 to 43 s"
    assert "Connection refused" in told["error"]
    assert words(last) == f"+ 41111 {anew}"


async def test_freeswitch_that_stands_still_is_found_out(
    freeswitch: FreeSwitch, kafka_settings: KafkaSettings, tmp_path: Path
) -> None:
    quick = {"NODE_SNAPSHOT_SECONDS": "0.2", "ESL_CONNECT_TIMEOUT_SECONDS": "0.5"}
    async with running(hook(kafka_settings, freeswitch.port, tmp_path / "log", **quick)):
        instance = freeswitch.open("41111").instance
        await registrations(kafka_settings, 1)
        freeswitch.answering.clear()
        lost = (await registrations(kafka_settings, 2))[-1]
        freeswitch.answering.set()
        found = (await registrations(kafka_settings, 3))[-1]
    assert words(lost) == f"- 41111 {instance} lost"
    assert words(found) == f"+ 41111 {instance}", "the same instance is found again"


async def test_a_number_that_is_created_anew_at_once(
    freeswitch: FreeSwitch, kafka_settings: KafkaSettings, tmp_path: Path
) -> None:
    created = []
    async with running(hook(kafka_settings, freeswitch.port, tmp_path / "log")):
        for _ in range(10):
            created.append(freeswitch.open("46666").instance)
            freeswitch.close(created[-1])
        last = freeswitch.open("46666").instance
        found = await registrations(kafka_settings, lambda seen: _live(seen) == [last])
    told = [words(record) for record in found]
    # An instance that ended before Kafka was told of it needs no record; what Kafka was told of ends after it began.
    assert told.count(f"+ 46666 {last}") == 1
    for instance in {record.instance_id for record in found} - {last}:
        assert instance in created
        assert [t for t in told if instance in t] == [f"+ 46666 {instance}", f"- 46666 {instance} ended"]


async def test_registrations_are_renewed(freeswitch: FreeSwitch, kafka_settings: KafkaSettings, tmp_path: Path) -> None:
    async with running(hook(kafka_settings, freeswitch.port, tmp_path / "log", NODE_RENEW_SECONDS="0.3")):
        instance = freeswitch.open("49123").instance
        found = await registrations(kafka_settings, 4)
        freeswitch.close(instance)
        found = await registrations(kafka_settings, lambda seen: len(seen) > 4 and not _live(seen))
    assert [words(record) for record in found[:4]] == [f"+ 49123 {instance}"] * 4
    assert len({record.sender_sequence for record in found}) == len(found)


async def test_a_hook_that_is_stopped_unregisters_nothing(
    freeswitch: FreeSwitch, kafka_settings: KafkaSettings, tmp_path: Path
) -> None:
    async with running(hook(kafka_settings, freeswitch.port, tmp_path / "log")) as child:
        instance = freeswitch.open("49123").instance
        await registrations(kafka_settings, 1)
        assert await child.stop() == 0
    assert [words(record) for record in await registrations(kafka_settings)] == [f"+ 49123 {instance}"]


async def test_what_cannot_be_read_is_set_aside_and_the_hook_goes_on(
    freeswitch: FreeSwitch, kafka_settings: KafkaSettings, tmp_path: Path
) -> None:
    nameless = b"Event-Subclass: conference%3A%3Amaintenance\nAction: add-member\n\n"
    async with running(hook(kafka_settings, freeswitch.port, tmp_path / "log")):
        await freeswitch.subscribers()
        freeswitch.say(b"Content-Type: log/data\nContent-Length: 2\n\nhi")
        freeswitch.say(b"Content-Length: 1\nContent-Type: text/event-json\n\n{")
        freeswitch.say(b"Content-Length: %d\nContent-Type: text/event-plain\n\n%b" % (len(nameless), nameless))
        freeswitch.say(b"this is no head line\n")
        rejected = await kafka_support.read(kafka_settings, topics.topics(kafka_settings).rejected.name, enough=4)
        await freeswitch.subscribers()
        freeswitch.open("49123")
        await registrations(kafka_settings, 1)
    reasons = [dict(record.headers)["callyard-reason"].decode() for record in rejected]
    assert all(dict(record.headers)["callyard-source"] == b"esl" for record in rejected)
    for part in ("unknown type 'log/data'", "not JSON", "Conference-Unique-ID ''", "this is no head line"):
        assert any(part in reason for reason in reasons), reasons
    assert {record.value[:2] for record in rejected} == {b"hi", b"{", b'{"', b"th"}


@pytest.mark.parametrize("fmt", ["plain", "json"])
async def test_hostile_frames_hold_up_nothing(
    fmt: str, freeswitch: FreeSwitch, kafka_settings: KafkaSettings, tmp_path: Path
) -> None:
    settings = {"ESL_EVENT_FORMAT": fmt, "ESL_RECONNECT_MAX_SECONDS": "0.2"}
    async with running(hook(kafka_settings, freeswitch.port, tmp_path / "log", **settings)) as child:
        for frame in hostile.READABLE_FRAMES.values():
            freeswitch.say(frame)
        good = freeswitch.open("41111").instance
        await registrations(kafka_settings, lambda seen: good in {record.instance_id for record in seen})
        assert len(events(child, "following FreeSWITCH")) == 1, "all of it on one connection"
        for number, frame in enumerate(hostile.BREAKING_FRAMES.values(), start=2):
            freeswitch.say(frame + b"\n\n")
            await until(lambda number=number: len(events(child, "following FreeSWITCH")) == number)  # type: ignore[misc]
        last = freeswitch.open("42222").instance
        found = await registrations(kafka_settings, lambda seen: last in {record.instance_id for record in seen})
        assert child.running
    assert {record.conference for record in found} == {"49123", "41111", "42222"}
    assert not [record for record in found if record.instance_id in (good, last) and words(record)[0] == "-"]


async def test_no_freeswitch_at_the_start(kafka_settings: KafkaSettings, tmp_path: Path) -> None:
    port = free_port()
    child = hook(kafka_settings, port, tmp_path / "log", ESL_RECONNECT_MAX_SECONDS="0.2")
    child.start()
    try:
        line = await child.line(lambda line: "cannot follow FreeSWITCH" in line, 20)
        async with FreeSwitch(port=port) as late:
            instance = late.open("49123").instance
            await child.ready(20)
            found = await registrations(kafka_settings, 1)
    finally:
        await child.stop()
    assert "check that it runs with mod_event_socket" in line
    assert [words(record) for record in found] == [f"+ 49123 {instance}"]


async def test_a_wrong_password_at_the_start_ends_the_hook_with_a_clear_error(
    freeswitch: FreeSwitch, kafka_settings: KafkaSettings, tmp_path: Path
) -> None:
    child = hook(kafka_settings, freeswitch.port, tmp_path / "log", ESL_PASSWORD="wrong")
    child.start()
    assert await asyncio.wait_for(child.wait(), 20) == 1
    assert "refuses the password (-ERR invalid): CALLYARD_ESL_PASSWORD" in child.lines()[-1]
    assert "wrong" not in "".join(child.lines())


async def test_a_password_that_is_changed_later_is_an_outage(
    freeswitch: FreeSwitch, kafka_settings: KafkaSettings, tmp_path: Path
) -> None:
    async with running(hook(kafka_settings, freeswitch.port, tmp_path / "log")) as child:
        instance = freeswitch.open("49123").instance
        await registrations(kafka_settings, 1)
        freeswitch.password = "changed"
        freeswitch.drop_connections()
        lost = (await registrations(kafka_settings, 2))[-1]
        freeswitch.password = "ClueCon"
        found = (await registrations(kafka_settings, 3))[-1]
        assert child.running
    assert words(lost) == f"- 49123 {instance} lost"
    assert words(found) == f"+ 49123 {instance}"


async def test_no_kafka_at_the_start(freeswitch: FreeSwitch, tmp_path: Path) -> None:
    nowhere = KafkaSettings(bootstrap_servers=f"127.0.0.1:{free_port()}")
    child = hook(nowhere, freeswitch.port, tmp_path / "log")
    child.start()
    assert await asyncio.wait_for(child.wait(), 30) == 1
    assert "check CALLYARD_KAFKA_BOOTSTRAP_SERVERS" in child.lines()[-1]


async def test_missing_topics(freeswitch: FreeSwitch, kafka_settings: KafkaSettings, tmp_path: Path) -> None:
    other = kafka_settings.model_copy(update={"topic_prefix": "nothing-here"})
    child = hook(other, freeswitch.port, tmp_path / "log")
    child.start()
    assert await asyncio.wait_for(child.wait(), 30) == 1
    assert "nothing-here.registrations is missing: run 'callyard topics'" in "".join(child.lines())


def _live(seen: list[RegistrationRecord]) -> list[str]:
    live: dict[str, None] = {}
    for record in seen:
        if isinstance(record, ConferenceRegistered):
            live[record.instance_id] = None
        else:
            live.pop(record.instance_id, None)
    return list(live)


async def _consume(consumer: AIOKafkaConsumer, count: int) -> list[RegistrationRecord]:
    found: list[RegistrationRecord] = []

    async def enough() -> bool:
        for batch in (await consumer.getmany(timeout_ms=50)).values():
            found.extend(read(record) for record in batch)
        return len(found) >= count

    await until(enough, what=lambda: f"{len(found)} of {count} records")
    return found
