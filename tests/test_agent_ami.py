"""The edge to Asterisk's manager interface, against a double that misbehaves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from agents import ami
from tests.support.ami import GREETING, SECRET, AmiDouble, Connection, ami_double
from tests.support.wait import until


@pytest_asyncio.fixture
async def double() -> AsyncIterator[AmiDouble]:
    async with ami_double() as made:
        yield made


async def next_event(session: ami.Session, name: str) -> ami.Headers:
    while True:
        item = await asyncio.wait_for(session.next(), 10)
        if isinstance(item, ami.Event) and item.headers["Event"] == name:
            return item.headers


async def lost(session: ami.Session) -> ami.AmiError:
    """Why the session ended, once it has."""
    while True:
        try:
            await asyncio.wait_for(session.next(), 10)
        except ami.AmiError as error:
            return error


def silent(_: Connection, __: dict[str, str]) -> None:
    """No answer."""


async def test_a_wrong_secret_is_refused_with_words_that_help_and_without_the_secret(double: AmiDouble) -> None:
    with pytest.raises(ami.AmiRefusedError) as raised:
        await ami.connect(double.settings(secret="a wrong one"))
    assert "CALLYARD_AMI_SECRET" in str(raised.value)
    assert "a wrong one" not in str(raised.value)


async def test_nothing_there_is_unreachable(unused_tcp_port: int) -> None:
    with pytest.raises(ami.AmiUnreachableError, match="CALLYARD_AMI_HOST"):
        await ami.connect(AmiDouble().settings(port=unused_tcp_port))


@pytest.mark.parametrize("greeting", [b"SSH-2.0-OpenSSH_9.2\r\n", b"\x00\xff\x00", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
async def test_something_else_there_is_no_asterisk(double: AmiDouble, greeting: bytes) -> None:
    double.greeting = greeting
    with pytest.raises(ami.AmiRefusedError, match="not an Asterisk manager"):
        await ami.connect(double.settings())


async def test_a_greeting_in_pieces_is_a_greeting(double: AmiDouble) -> None:
    def rest(connection: Connection, action: dict[str, str]) -> None:
        connection.write(GREETING[9:])
        connection.answer(action)

    double.greeting = GREETING[:9]
    double.on["Login"] = rest
    session = await ami.connect(double.settings())
    session.close()


@pytest.mark.parametrize("ending", ["close", "abort"])
async def test_a_connection_that_ends_before_the_login_is_answered_is_unreachable(
    double: AmiDouble, ending: str
) -> None:
    double.on["Login"] = lambda connection, _: getattr(connection, ending)()
    with pytest.raises(ami.AmiUnreachableError, match="no login"):
        await ami.connect(double.settings())


async def test_silence_is_unreachable(double: AmiDouble) -> None:
    double.greeting = b""
    double.on["Login"] = silent
    with pytest.raises(ami.AmiUnreachableError, match="within"):
        await ami.connect(double.settings(connect_timeout_seconds=0.1))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Value", "sip:1@x\r\nAction: Originate"),
        ("Value", "a\nb"),
        ("Value", "a\rb"),
        ("Value", "a\0b"),
        ("Val\r\nue", "a"),
        ("Value", "x" * 1020),
        ("Value", "ü" * 510),
    ],
)
async def test_what_would_not_be_one_line_is_refused_before_anything_is_written(
    double: AmiDouble, name: str, value: str
) -> None:
    session = await ami.connect(double.settings())
    with pytest.raises(ami.UnsafeValueError):
        session.send("Setvar", {"Variable": "A", name: value})
    await session.answer(session.send("Ping", {}))
    assert not double.named("Setvar")
    assert not double.named("Originate")
    session.close()


async def test_the_longest_line_passes(double: AmiDouble) -> None:
    session = await ami.connect(double.settings())
    value = "x" * (ami.MAX_LINE_BYTES - len("Value: \r\n"))
    await session.answer(session.send("Setvar", {"Value": value}))
    assert double.named("Setvar")[0]["Value"] == value
    session.close()


async def test_an_error_answer_says_that_nothing_was_done(double: AmiDouble) -> None:
    double.on["Redirect"] = lambda connection, action: connection.answer(
        action, "Response: Error", "Message: Channel does not exist"
    )
    session = await ami.connect(double.settings())
    with pytest.raises(ami.AmiActionError, match="Channel does not exist"):
        await session.answer(session.send("Redirect", {"Channel": "PJSIP/x-1"}))
    session.close()


async def test_an_answer_lost_in_a_disconnect_is_told_at_once_and_the_action_is_never_sent_again(
    double: AmiDouble,
) -> None:
    double.on["Redirect"] = lambda connection, _: connection.abort()
    session = await ami.connect(double.settings(connect_timeout_seconds=60))
    pending = session.send("Redirect", {"Channel": "PJSIP/x-1"})
    with pytest.raises(ami.AmiLostError):
        await asyncio.wait_for(session.answer(pending), 5)
    assert isinstance(await lost(session), ami.AmiLostError)

    again = await ami.connect(double.settings())
    await next_event(again, "FullyBooted")  # panoramisk would send it again at this event
    await again.answer(again.send("Ping", {}))
    assert len(double.named("Redirect")) == 1
    again.close()


async def test_nothing_can_be_sent_after_the_end(double: AmiDouble) -> None:
    session = await ami.connect(double.settings())
    session.close()
    with pytest.raises(ami.AmiLostError):
        session.send("Ping", {})


async def test_an_action_without_an_answer_times_out_and_a_late_answer_disturbs_nothing(double: AmiDouble) -> None:
    double.on["Redirect"] = silent
    session = await ami.connect(double.settings(connect_timeout_seconds=0.1))
    pending = session.send("Redirect", {"Channel": "PJSIP/x-1"})
    with pytest.raises(ami.AmiTimeoutError):
        await session.answer(pending)
    double.connections[0].answer(double.named("Redirect")[0])
    await session.answer(session.send("Ping", {}))
    assert session.lost is None
    session.close()


async def test_an_unanswered_ping_ends_the_session(double: AmiDouble) -> None:
    double.on["Ping"] = silent
    session = await ami.connect(double.settings(connect_timeout_seconds=0.1), ping_seconds=0.05)
    assert "ping" in str(await lost(session))


async def test_answered_pings_keep_it(double: AmiDouble) -> None:
    session = await ami.connect(double.settings(), ping_seconds=0.01)
    await double.told("Ping", 5)
    assert session.lost is None
    session.close()


TEXT = "Event: UserEvent\r\nName: Zoë ☎ 👋🏽 Müller\r\n\r\n".encode()


@pytest.mark.parametrize("position", range(1, len(TEXT)))
async def test_text_split_anywhere_loses_no_character(double: AmiDouble, position: int) -> None:
    session = await ami.connect(double.settings())
    # Straight into the protocol: two writes to a socket may arrive as one.
    protocol = session.manager.protocol
    protocol.data_received(TEXT[:position])
    protocol.data_received(TEXT[position:])
    assert (await next_event(session, "UserEvent"))["Name"] == "Zoë ☎ 👋🏽 Müller"
    session.close()


async def test_text_byte_by_byte_and_with_bytes_that_are_no_text(double: AmiDouble) -> None:
    session = await ami.connect(double.settings())
    for byte in TEXT + b"Event: Odd\r\nName: \xff\xfe!\r\n\r\n":
        session.manager.protocol.data_received(bytes([byte]))
    assert (await next_event(session, "UserEvent"))["Name"] == "Zoë ☎ 👋🏽 Müller"
    assert (await next_event(session, "Odd"))["Name"] == "\ufffd\ufffd!"
    session.close()


async def test_text_without_an_end_ends_the_session(double: AmiDouble) -> None:
    session = await ami.connect(double.settings())
    double.connections[0].write(b"x" * (ami.MAX_MESSAGE_CHARACTERS + 1000))
    assert "without an end" in str(await lost(session))


async def test_events_and_lists_come_in_the_order_in_which_they_were_written(double: AmiDouble) -> None:
    def listing(connection: Connection, action: dict[str, str]) -> None:
        connection.message("Event: Before")
        connection.listing(action, ("Event: ParkedCall", "ParkeeUniqueid: 1.1"), ("Event: ParkedCall", "X: 2"))
        connection.message("Event: After")

    double.on["ParkedCalls"] = listing
    session = await ami.connect(double.settings())
    await next_event(session, "FullyBooted")
    session.request_list("ParkedCalls", {})
    before, listed, after = [await asyncio.wait_for(session.next(), 5) for _ in range(3)]
    assert before == ami.Event({"Event": "Before"})
    assert isinstance(listed, ami.Listing)
    assert [entry["Event"] for entry in listed.entries] == ["ParkedCall", "ParkedCall"]
    assert after == ami.Event({"Event": "After"})
    session.close()


async def test_a_list_that_is_refused_says_why(double: AmiDouble) -> None:
    double.on["ParkedCalls"] = lambda connection, action: connection.answer(
        action, "Response: Error", "Message: Invalid/unknown command"
    )
    session = await ami.connect(double.settings())
    await next_event(session, "FullyBooted")
    session.request_list("ParkedCalls", {})
    assert await session.next() == ami.Listing("ParkedCalls", (), "Invalid/unknown command")
    session.close()


async def test_list_entries_that_nobody_waits_for_are_no_events(double: AmiDouble) -> None:
    session = await ami.connect(double.settings())
    double.connections[0].message("Event: ParkedCall", "ParkeeUniqueid: 1.1", "ActionID: action/of/another/1")
    double.connections[0].message("Event: Live")
    await next_event(session, "FullyBooted")
    assert await session.next() == ami.Event({"Event": "Live"})
    session.close()


async def test_what_came_before_the_end_is_read_before_it(double: AmiDouble) -> None:
    session = await ami.connect(double.settings())
    double.connections[0].message("Event: Shutdown", "Shutdown: Cleanly")
    double.connections[0].message("Event: Hangup", "Uniqueid: 1.1")
    double.connections[0].close()
    await until(lambda: session.lost)
    assert (await next_event(session, "Hangup"))["Uniqueid"] == "1.1"
    assert isinstance(await lost(session), ami.AmiLostError)


async def test_the_secret_reaches_no_log(double: AmiDouble, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    session = await ami.connect(double.settings())
    session.send("Ping", {})
    double.connections[0].abort()
    await lost(session)
    assert SECRET in str(double.actions[0])
    assert SECRET not in caplog.text
