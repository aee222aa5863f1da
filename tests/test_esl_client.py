"""The client against the double that speaks recorded bytes, and against servers that are none, or not well."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from pydantic import SecretStr

from callyard.parts.freeswitch import FreeSwitch
from callyard.processes import free_port
from callyard.settings import EslSettings
from fs_hooks import esl
from fs_hooks.client import (
    Backoff,
    ClosedError,
    CommandRefusedError,
    Link,
    NoAnswerError,
    NotFreeSwitchError,
    RejectedError,
    UnreachableError,
    WrongPasswordError,
    connect,
)
from tests.support.esl import recording
from tests.support.wait import until

SUBSCRIBE = ("event", "plain", "CUSTOM", "conference::maintenance")
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def to(port: int, password: str = "ClueCon", timeout: float = 5) -> EslSettings:
    return EslSettings(port=port, password=SecretStr(password), connect_timeout_seconds=timeout)


def ignore(_frame: esl.Frame) -> None:
    pass


@asynccontextmanager
async def server(serve: Serve) -> AsyncIterator[int]:
    """A server of a test's own; its connections end with it."""

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
            await reader.read()
        finally:
            writer.close()

    running = await asyncio.start_server(served, "127.0.0.1", 0)
    try:
        yield running.sockets[0].getsockname()[1]
    finally:
        running.close()


def saying(data: bytes, *, close: bool = False) -> Serve:
    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        if close:
            await writer.drain()
            writer.close()

    return serve


@pytest.mark.parametrize("piece", [None, 1, 7])
@pytest.mark.parametrize("fmt", ["plain", "json"])
async def test_events_and_answers_however_the_bytes_are_split(fmt: str, piece: int | None) -> None:
    seen: list[esl.Frame] = []
    async with FreeSwitch(piece=piece) as freeswitch, connect(to(freeswitch.port), seen.append) as link:
        assert (await link.command("event", fmt, "CUSTOM", "conference::maintenance")).startswith("+OK")
        assert await link.api("conference", "json_list") == "[]"
        written = freeswitch.open("49123")
        answer = await link.api("conference", "json_list")
        freeswitch.close(written.instance)
        await until(lambda: len(seen) == 4)
    assert written.instance in answer
    assert '"49123"' in answer
    actions = [frame.headers["Action"] for frame in seen if isinstance(frame, esl.Event)]
    assert actions == ["conference-create", "add-member", "del-member", "conference-destroy"]
    assert all(f.headers["Conference-Unique-ID"] == written.instance for f in seen if isinstance(f, esl.Event))


async def test_answers_belong_to_their_questions_whatever_comes_between() -> None:
    async with FreeSwitch() as freeswitch, connect(to(freeswitch.port), ignore) as link:
        await link.command(*SUBSCRIBE)
        tasks = []
        for number in range(20):
            freeswitch.open(str(50000 + number))
            tasks.append(asyncio.create_task(link.api("status" if number % 2 else "conference json_list")))
        answers = await asyncio.gather(*tasks)
    assert [answer.startswith("UP") for answer in answers] == [bool(number % 2) for number in range(20)]


async def test_a_wrong_password() -> None:
    async with FreeSwitch() as freeswitch:
        with pytest.raises(WrongPasswordError, match=r"-ERR invalid.*CALLYARD_ESL_PASSWORD"):
            async with connect(to(freeswitch.port, "wrong"), ignore):
                pass


async def test_nobody_listens() -> None:
    with pytest.raises(UnreachableError, match=r"Connection refused.*CALLYARD_ESL_HOST"):
        async with connect(to(free_port()), ignore):
            pass


async def test_an_access_list_that_refuses_us() -> None:
    rejection = b"Content-Type: text/rude-rejection\nContent-Length: 24\n\nAccess Denied, go away.\n"
    async with server(saying(rejection, close=True)) as port:
        with pytest.raises(RejectedError, match=r"Access Denied.*apply-inbound-acl"):
            async with connect(to(port), ignore):
                pass


@pytest.mark.parametrize(
    "greeting",
    [b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"220 mail ESMTP\r\n", b"\0\1\2\n",
     b"Content-Type: command/reply\nReply-Text: +OK accepted\n\n", b"Content-Type: api/response\n\n"],
)  # fmt: skip
async def test_something_that_is_not_freeswitch(greeting: bytes) -> None:
    async with server(saying(greeting)) as port:
        with pytest.raises(NotFreeSwitchError, match="CALLYARD_ESL_HOST"):
            async with connect(to(port), ignore):
                pass


async def test_something_that_says_nothing() -> None:
    async with server(saying(b"")) as port:
        with pytest.raises(NoAnswerError, match=r"0\.2 s: is it FreeSWITCH"):
            async with connect(to(port, timeout=0.2), ignore):
                pass


async def test_an_answer_that_does_not_come() -> None:
    async with FreeSwitch() as freeswitch, connect(to(freeswitch.port, timeout=0.2), ignore) as link:
        freeswitch.answering.clear()
        with pytest.raises(NoAnswerError, match="an answer to 'api'"):
            await link.api("status")


async def test_an_answer_that_nobody_asked_for() -> None:
    async with server(saying(recording("lifecycle-plain")[:156] + b"Content-Type: api/response\n\n" * 2)) as port:
        with pytest.raises(NotFreeSwitchError):
            async with connect(to(port), ignore) as link:
                await link.wait(5)


async def test_a_refused_command() -> None:
    async with FreeSwitch() as freeswitch, connect(to(freeswitch.port), ignore) as link:
        with pytest.raises(CommandRefusedError, match="-ERR command not found"):
            await link.command("sendmsg")
        freeswitch.denied.add("reloadxml")
        with pytest.raises(CommandRefusedError, match="-ERR permission denied"):
            await link.api("reloadxml")
        assert await link.api("reloadxm") == "-ERR reloadxm Command not found!\n"


async def test_a_command_that_would_be_two_is_never_sent() -> None:
    async with FreeSwitch() as freeswitch, connect(to(freeswitch.port), ignore) as link:
        with pytest.raises(esl.LocalProtocolError):
            await link.api("status\n\nexit")
        assert (await link.api("status")).startswith("UP"), "the connection is as sound as before"


async def test_the_connection_breaks_while_an_answer_is_awaited() -> None:
    async with FreeSwitch() as freeswitch, connect(to(freeswitch.port), ignore) as link:
        freeswitch.answering.clear()
        asking = asyncio.create_task(link.api("status"))
        await asyncio.sleep(0)
        freeswitch.drop_connections()
        with pytest.raises(ClosedError):
            await asking
        with pytest.raises(ClosedError):
            await link.api("status")


async def test_the_connection_is_cut_in_the_middle_of_a_frame() -> None:
    data = recording("lifecycle-plain")
    frames: list[esl.Frame] = []
    async with server(after_log_in(data[156:1000], close=True)) as port:
        with pytest.raises(ClosedError, match="in the middle of a frame"):
            async with connect(to(port), frames.append) as link:
                await link.wait(5)
    assert len(frames) == 1, "what was whole before the cut counts"


async def test_freeswitch_says_good_bye() -> None:
    async with FreeSwitch() as freeswitch, connect(to(freeswitch.port), ignore) as link:
        await link.command("exit")
        with pytest.raises(ClosedError, match=r"ends the connection.*Disconnected, goodbye"):
            await link.wait(5)


async def test_a_notice_that_lingers_lets_the_rest_come() -> None:
    notice = b"Content-Type: text/disconnect-notice\nContent-Disposition: linger\nContent-Length: 0\n\n"
    frames: list[esl.Frame] = []
    async with server(after_log_in(notice + recording("lifecycle-plain")[156:911], close=True)) as port:
        with pytest.raises(ClosedError, match="closed the connection"):
            async with connect(to(port), frames.append) as link:
                await link.wait(5)
    assert len(frames) == 1


async def test_a_frame_without_sense_is_handed_on_and_the_connection_goes_on() -> None:
    frames: list[esl.Frame] = []
    bad = b"Content-Length: 1\nContent-Type: text/event-json\n\n{" + b"Content-Type: log/data\nContent-Length: 2\n\nhi"
    async with FreeSwitch() as freeswitch, connect(to(freeswitch.port), frames.append) as link:
        await link.command(*SUBSCRIBE)
        freeswitch.say(bad)
        assert (await link.api("status")).startswith("UP")
    assert [type(frame) for frame in frames] == [esl.Unreadable, esl.UnknownFrame]


async def test_a_mistake_of_ours_is_not_taken_for_freeswitchs() -> None:
    def mistake(_frame: esl.Frame) -> None:
        raise ZeroDivisionError

    async with FreeSwitch() as freeswitch, connect(to(freeswitch.port), mistake) as link:
        await link.command(*SUBSCRIBE)
        freeswitch.open("49123")
        with pytest.raises(ZeroDivisionError):
            await link.wait(5)


async def test_waiting_ends_in_time() -> None:
    async with FreeSwitch() as freeswitch, connect(to(freeswitch.port), ignore) as link:
        await asyncio.wait_for(link.wait(0.01), 5)
        assert isinstance(link, Link)


def test_delays_double_up_to_the_most_and_begin_anew() -> None:
    backoff = Backoff(10)
    delays = [backoff.delay() for _ in range(10)]
    bounds = [0.25, 0.5, 1, 2, 4, 8, 10, 10, 10, 10]
    assert all(bound / 2 <= delay <= bound for delay, bound in zip(delays, bounds, strict=True))
    backoff.reset()
    assert backoff.delay() <= 0.25
    assert Backoff(0.1).delay() <= 0.1


def after_log_in(data: bytes, *, close: bool) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        recorded = recording("lifecycle-plain")
        writer.write(recorded[:28])
        await reader.readuntil(b"\n\n")
        writer.write(recorded[28:82])
        writer.write(data)
        if close:
            await writer.drain()
            writer.close()

    return serve
