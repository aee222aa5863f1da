"""The source ``bigbluebutton`` on a real Redis and a double of the API: missed, lost, refused, and found again."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_asyncio
from pydantic import SecretStr

from callyard.errors import CommandError
from callyard.notify import Notifier
from callyard.parts import redis
from callyard.parts.freeswitch import FreeSwitch
from callyard.records import REGISTRATIONS, ConferenceRegistered, RegistrationRecord, Sent, Source, parse
from callyard.settings import BigBlueButtonSettings, NodeSettings
from fs_hooks import channel as channel_module
from fs_hooks import resp, web
from fs_hooks.aside import Aside
from fs_hooks.bigbluebutton import BigBlueButton as BigBlueButtonSource
from fs_hooks.publisher import Publisher
from fs_hooks.registrar import Registrar
from tests.support import bigbluebutton
from tests.support.bigbluebutton import BigBlueButton, http, message
from tests.support.hook import hook, running, words
from tests.support.wait import until

Found = list[str]


@pytest_asyncio.fixture
async def bbb(tmp_path: Path) -> AsyncIterator[BigBlueButton]:
    async with bigbluebutton.running(tmp_path / "redis") as made:
        yield made


class Outlet:
    """Takes records at once."""

    def __init__(self) -> None:
        self.records: list[RegistrationRecord] = []

    async def begin(self, record: Sent, conference: str) -> asyncio.Future[object]:
        assert isinstance(record, RegistrationRecord)
        assert record.conference == conference
        self.records.append(record)
        delivery: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        delivery.set_result(None)
        return delivery

    @property
    def said(self) -> Found:
        return [words(record) for record in self.records]


class Following:
    """The source, followed; and what follows from it."""

    def __init__(self, bbb: BigBlueButton, **more: Any) -> None:
        node = NodeSettings(
            id="node-1", sip_uri="sip:{conference}@192.0.2.7", sources="bigbluebutton",
            meeting_sip_uri="sips:{conference}@192.0.2.7:5071;transport=tls",
            snapshot_seconds=more.pop("snapshot_seconds", 3600), renew_seconds=3600,
        )  # fmt: skip
        settings = BigBlueButtonSettings.model_validate({
            "api_url": f"http://127.0.0.1:{bbb.port}/bigbluebutton/api", "secret": SecretStr(bigbluebutton.SECRET),
            "redis_port": bbb.redis.port, "reconnect_max_seconds": 0.2, "timeout_seconds": 2, **more,
        })  # fmt: skip
        self.outlet = Outlet()
        self.publisher = Publisher(self.outlet, node)
        self.registrar = Registrar(node, self.publisher, Notifier({}))
        self.aside = Aside(None)
        self.source = BigBlueButtonSource(settings, node, self.registrar, self.aside)

    async def said(self, count: int) -> Found:
        """What was said, once it is so much."""
        await until(lambda: len(self.outlet.said) >= count, what=lambda: self.outlet.said)
        return self.outlet.said


@asynccontextmanager
async def following(bbb: BigBlueButton, **more: Any) -> AsyncIterator[Following]:
    made = Following(bbb, **more)
    lists = bbb.lists
    tasks = [asyncio.create_task(work) for work in (made.publisher.run(), made.source.follow(), made.aside.run())]
    try:
        if bbb.answering.is_set():
            await until(lambda: bbb.lists > lists or any(task.done() for task in tasks))
        yield made
    finally:
        for task in tasks:
            task.cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in done), done


async def test_a_meeting_is_registered_under_its_own_uri_when_it_begins_and_ends_with_it(bbb: BigBlueButton) -> None:
    async with following(bbb) as here:
        meeting = await bbb.create("49123")
        breakout = await bbb.create("491231", breakout=True)
        await here.said(2)
        await bbb.end(breakout)
        await bbb.publish(message("MeetingDestroyedEvtMsg", {"meetingId": breakout}))
        await bbb.end(meeting)
        said = await here.said(4)
    assert said == [
        f"+ 49123 {meeting}",
        f"+ 491231 {breakout}",
        f"- 491231 {breakout} ended",
        f"- 49123 {meeting} ended",
    ]
    first = here.outlet.records[0]
    assert isinstance(first, ConferenceRegistered)
    assert (first.source, first.sip_uri) == (Source.BIGBLUEBUTTON, "sips:49123@192.0.2.7:5071;transport=tls")
    assert first.opened_at_ms == int(meeting.rpartition("-")[2])


async def test_meetings_older_than_the_hook_come_from_the_list(bbb: BigBlueButton) -> None:
    older = [await bbb.create(number) for number in ("49123", "49124", "99999")]
    async with following(bbb) as here:
        assert await here.said(2) == [f"+ 49123 {older[0]}", f"+ 49124 {older[1]}"]
        assert here.registrar.live.keys() == {f"bigbluebutton|{instance}" for instance in older[:2]}


async def test_what_was_not_said_is_made_up_for_by_the_next_list(bbb: BigBlueButton) -> None:
    async with following(bbb, snapshot_seconds=0.1) as here:
        first = await bbb.create("41111", say=False)
        await here.said(1)
        await bbb.end(first, say=False)
        assert await here.said(2) == [f"+ 41111 {first}", f"- 41111 {first} ended"]


async def test_what_has_ended_and_is_still_listed_does_not_come_back(bbb: BigBlueButton) -> None:
    async with following(bbb, snapshot_seconds=0.05) as here:
        meeting = await bbb.create("41111")
        await bbb.end(meeting, listed=True)
        await here.said(2)
        lists = bbb.lists
        await until(lambda: bbb.lists >= lists + 3)
        assert here.outlet.said == [f"+ 41111 {meeting}", f"- 41111 {meeting} ended"]


async def test_a_voice_bridge_that_is_used_again_at_once(bbb: BigBlueButton) -> None:
    async with following(bbb) as here:
        first = await bbb.create("41111")
        second = await bbb.create("41111")
        await bbb.end(first)
        said = await here.said(3)
    assert said == [f"+ 41111 {first}", f"+ 41111 {second}", f"- 41111 {first} ended"]


async def test_redis_is_away_and_the_list_stands_in(bbb: BigBlueButton) -> None:
    async with following(bbb) as here:
        first = await bbb.create("41111")
        await here.said(1)
        await bbb.redis.stop()
        second = await bbb.create("42222", say=False)
        await here.said(2)
        await bbb.end(first, say=False)
        said = await here.said(3)
        await bbb.redis.start()
        await until(lambda: bbb.publish(message("X", {})))
        third = await bbb.create("43333")
        assert (await here.said(4))[3:] == [f"+ 43333 {third}"]
    assert said == [f"+ 41111 {first}", f"+ 42222 {second}", f"- 41111 {first} ended"]


async def test_a_redis_that_stands_still_is_found_out(
    bbb: BigBlueButton, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(channel_module, "SILENCE_SECONDS", 0.1)
    async with following(bbb, timeout_seconds=0.3) as here:
        first = await bbb.create("41111")
        await here.said(1)
        os.kill(bbb.redis.pid, signal.SIGSTOP)
        try:
            await bbb.end(first, say=False)
            assert (await here.said(2))[1] == f"- 41111 {first} ended", "known by the list: no message came"
        finally:
            os.kill(bbb.redis.pid, signal.SIGCONT)


async def test_a_quiet_redis_is_asked_and_stays(bbb: BigBlueButton, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "SILENCE_SECONDS", 0.05)
    settings = Following(bbb).source._settings
    taken: list[bytes | resp.TooLarge] = []
    async with channel_module.subscribed(settings, "quiet", taken.append) as channel:
        await channel.wait(0.5)
    assert taken == []


async def test_the_api_is_away_and_messages_go_on(bbb: BigBlueButton) -> None:
    async with following(bbb, snapshot_seconds=0.1) as here:
        first = await bbb.create("41111")
        await here.said(1)
        bbb.stop_listening()
        second = await bbb.create("42222")
        await bbb.end(first)
        assert await here.said(3) == [f"+ 41111 {first}", f"+ 42222 {second}", f"- 41111 {first} ended"]


async def test_without_both_nothing_is_vouched_for_and_the_same_meeting_is_found_again(bbb: BigBlueButton) -> None:
    async with following(bbb) as here:
        first, second = await bbb.create("41111"), await bbb.create("42222")
        await here.said(2)
        bbb.stop_listening()
        await bbb.redis.stop()
        lost = (await here.said(4))[2:]
        await bbb.end(second, say=False)
        await bbb.listen()
        found = (await here.said(5))[4:]
    assert sorted(lost) == [f"- 41111 {first} lost", f"- 42222 {second} lost"]
    assert found == [f"+ 41111 {first}"]


async def test_bigbluebutton_that_comes_later_than_the_hook(bbb: BigBlueButton) -> None:
    bbb.stop_listening()
    await bbb.redis.stop()
    bbb.answering.clear()  # following() must not wait for a list
    async with following(bbb) as here:
        bbb.answering.set()
        await asyncio.wait_for(_tried(here), 20)
        assert not here.registrar._merge.begun
        meeting = await bbb.create("41111", say=False)
        await bbb.listen()
        assert await here.said(1) == [f"+ 41111 {meeting}"]
        assert here.registrar._merge.begun


async def _tried(here: Following) -> None:
    await until(lambda: not here.registrar._merge._untried)


@pytest.mark.parametrize(
    "raw",
    [http("<html>502</html>", "502 Bad Gateway"), http("<html/>"), http("<a>" * 1000), b"", b"\0" * 1000,
     http("<!DOCTYPE x [<!ENTITY a 'a'>]><response><returncode>SUCCESS</returncode></response>")],
)  # fmt: skip
async def test_an_answer_that_is_none_ends_no_meeting(bbb: BigBlueButton, raw: bytes) -> None:
    async with following(bbb, snapshot_seconds=0.05) as here:
        first = await bbb.create("41111")
        await here.said(1)
        bbb.raw = raw
        requests = bbb.requests
        await until(lambda: bbb.requests >= requests + 2)
        bbb.raw = None
        second = await bbb.create("42222", say=False)
        assert await here.said(2) == [f"+ 41111 {first}", f"+ 42222 {second}"]


async def test_a_wrong_secret_at_the_start_says_what_to_do(bbb: BigBlueButton) -> None:
    made = Following(bbb, secret=SecretStr("another"))
    with pytest.raises(
        CommandError, match=r"checksumError.*CALLYARD_BIGBLUEBUTTON_SECRET.*bbb-conf --secret"
    ) as raised:
        await asyncio.wait_for(made.source.follow(), 20)
    assert "another" not in str(raised.value)


async def test_a_secret_that_is_changed_later_is_an_outage_of_the_list(bbb: BigBlueButton) -> None:
    async with following(bbb, snapshot_seconds=0.05) as here:
        first = await bbb.create("41111")
        await here.said(1)
        bbb.secret = "changed"
        requests = bbb.requests
        await until(lambda: bbb.requests >= requests + 2)
        await bbb.end(first)
        assert await here.said(2) == [f"+ 41111 {first}", f"- 41111 {first} ended"]


async def test_a_list_that_does_not_come(bbb: BigBlueButton) -> None:
    async with following(bbb, snapshot_seconds=0.05, timeout_seconds=0.2) as here:
        first = await bbb.create("41111")
        await here.said(1)
        bbb.answering.clear()
        second = await bbb.create("42222")
        assert await here.said(2) == [f"+ 41111 {first}", f"+ 42222 {second}"]
        bbb.answering.set()


async def test_an_endless_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "MAX_BYTES", 1_000_000)

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):  # cut off: what is tried
            while True:
                writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 100_000)
                await writer.drain()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        with pytest.raises(web.WebError, match="more than 1000000 bytes"):
            await web.get(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "/", 20)
    finally:
        server.close()


async def test_rubbish_and_large_messages_are_set_aside_and_the_channel_goes_on(bbb: BigBlueButton) -> None:
    async with following(bbb) as here:
        await bbb.publish(b'{"MeetingEndedEvtMsg"')
        await bbb.publish(b'"MeetingCreatedEvtMsg"' * (resp.MAX_VALUE_BYTES // 10))
        await bbb.publish(b"\xff\x00")
        meeting = await bbb.create("41111")
        assert await here.said(1) == [f"+ 41111 {meeting}"]


@pytest.mark.parametrize("given", [None, "wrong"])
async def test_redis_wants_another_password(tmp_path: Path, bbb: BigBlueButton, given: str | None) -> None:
    async with redis.running(tmp_path / "locked", "right") as locked:
        secret = None if given is None else SecretStr(given)
        made = Following(bbb, redis_port=locked.port, redis_password=secret)
        with pytest.raises(CommandError, match=r"(NOAUTH|WRONGPASS).*CALLYARD_BIGBLUEBUTTON_REDIS_PASSWORD"):
            await asyncio.wait_for(made.source.follow(), 20)
        async with following(bbb, redis_port=locked.port, redis_password=SecretStr("right")):
            pass


async def test_something_else_listens_where_redis_should(bbb: BigBlueButton) -> None:
    settings = Following(bbb, redis_port=bbb.port).source._settings
    with pytest.raises(channel_module.ChannelError, match=r"isn't Redis|closed the connection|doesn't answer"):
        async with channel_module.subscribed(settings, "x", lambda _message: None):
            pass


async def test_a_dry_run_of_both_sources_says_each_conference_once(bbb: BigBlueButton, tmp_path: Path) -> None:
    async with FreeSwitch() as freeswitch:
        meeting = await bbb.create("41111")
        freeswitch.open("41111")
        alone = freeswitch.open("42222").instance
        child = hook(
            None, freeswitch.port, tmp_path / "log", "--dry-run", NODE_SOURCES="freeswitch,bigbluebutton",
            BIGBLUEBUTTON_API_URL=f"http://127.0.0.1:{bbb.port}/bigbluebutton/api/",
            BIGBLUEBUTTON_SECRET=bigbluebutton.SECRET, BIGBLUEBUTTON_REDIS_PORT=str(bbb.redis.port),
        )  # fmt: skip

        def printed() -> list[str]:
            lines = [
                line for line in child.lines() if line.startswith("{") and orjson.loads(line).get("schema_version")
            ]
            return [words(parse(REGISTRATIONS, line.encode())) for line in lines]

        async with running(child):
            await until(lambda: len(printed()) == 2, what=child.lines)
            freeswitch.close("41111")
            late = await bbb.create("43333")
            await until(lambda: len(printed()) == 3, what=child.lines)
            freeswitch.open("43333")
            await bbb.end(late)
            await until(lambda: len(printed()) == 4, what=child.lines)
            freeswitch.kill()
            await until(lambda: len(printed()) == 6, what=child.lines)
    assert sorted(printed()[:2]) == [f"+ 41111 {meeting}", f"+ 42222 {alone}"]
    assert printed()[2:4] == [f"+ 43333 {late}", f"- 43333 {late} ended"]
    assert sorted(printed()[4:]) == [f"- 41111 {meeting} lost", f"- 42222 {alone} lost"]


async def test_a_dry_run_without_freeswitch_asks_for_nothing_of_it(bbb: BigBlueButton, tmp_path: Path) -> None:
    meeting = await bbb.create("41111")
    child = hook(
        None, 1, tmp_path / "log", "--dry-run", NODE_SOURCES="bigbluebutton", ESL_PASSWORD="two\nlines",
        BIGBLUEBUTTON_API_URL=f"http://127.0.0.1:{bbb.port}/bigbluebutton/api",
        BIGBLUEBUTTON_SECRET=bigbluebutton.SECRET, BIGBLUEBUTTON_REDIS_PORT=str(bbb.redis.port),
    )  # fmt: skip
    async with running(child):
        await until(lambda: any(meeting in line for line in child.lines()), what=child.lines)
