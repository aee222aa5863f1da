"""The real Asterisk for tests (fixtures ``gateway``, ``raw_ami``), and a bare manager client.

The client knows no more than messages and action ids: what the agent's own edge makes of them is tested elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from callyard.parts import asterisk, sipp
from callyard.settings import AmiSettings
from tests.support.wait import until

NUMBERS = itertools.count(70001)


def conference_number() -> str:
    """A conference number that no other test of this run has."""
    return str(next(NUMBERS))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[asterisk.Gateway]:
    """A gateway for the whole run. Tests that end it, or that need other settings, start one of their own (0.3 s).

    Whatever the tests did, it must not have made Asterisk complain about its configuration or dialplan.
    """
    async with asterisk.running(tmp_path_factory.mktemp("gateway")) as running:
        yield running
        assert list(problems(running.log())) == []


@pytest_asyncio.fixture
async def raw_ami(gateway: asterisk.Gateway) -> AsyncIterator[RawAmi]:
    """A manager client, logged in as the agent would be."""
    async with connected(gateway.ami) as client:
        yield client


class Message:
    """One message of the manager interface: its headers in order, some of them several times."""

    def __init__(self, headers: list[tuple[str, str]]) -> None:
        self.headers = headers

    def __getitem__(self, name: str) -> str:
        return next((value for key, value in self.headers if key == name), "")

    def __repr__(self) -> str:
        return f"Message({self.headers})"

    @property
    def variables(self) -> dict[str, str]:
        """The caller's channel variables."""
        names = {"ChanVariable", "ParkeeChanVariable"}
        return dict(value.split("=", 1) for key, value in self.headers if key in names)

    @property
    def channel(self) -> str:
        return self["ParkeeChannel"] or self["Channel"]


class RawAmi:
    """A connection to the manager interface. ``events`` holds all that came, answers' lists included."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._ids = itertools.count(1)
        self._answers: dict[str, asyncio.Future[Message]] = {}
        self.events: list[Message] = []

    async def read(self) -> None:
        """Take messages in until the connection ends."""
        while raw := await self._reader.readuntil(b"\r\n\r\n"):
            lines = raw.decode().strip("\r\n").split("\r\n")
            pairs = [line.partition(":") for line in lines]
            message = Message([(key, value.removeprefix(" ")) for key, _, value in pairs])
            answer = self._answers.pop(message["ActionID"], None) if message["Response"] else None
            if answer is not None:
                answer.set_result(message)
            else:
                self.events.append(message)

    async def action(self, action: str, **fields: str) -> Message:
        """Send an action and wait for its answer."""
        number = str(next(self._ids))
        self._answers[number] = asyncio.get_running_loop().create_future()
        lines = [f"Action: {action}", f"ActionID: {number}", *(f"{key}: {value}" for key, value in fields.items())]
        self._writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        return await asyncio.wait_for(self._answers[number], 10)

    async def listed(self, action: str, **fields: str) -> list[Message]:
        """Send an action that is answered by a list, and return the list's entries."""
        start = await self.action(action, **fields)
        assert start["EventList"] == "start", start
        number = start["ActionID"]
        await until(lambda: any(e["ActionID"] == number and e["EventList"] == "Complete" for e in self.events))
        return [e for e in self.events if e["ActionID"] == number and e["EventList"] != "Complete"]

    def named(self, event: str, **fields: str) -> list[Message]:
        """The events of this name (no list entries) whose variables or headers have these values."""
        return [
            message
            for message in self.events
            if message["Event"] == event
            and not message["ActionID"]
            and all((message.variables.get(name) or message[name]) == value for name, value in fields.items())
        ]

    async def event(self, event: str, *, count: int = 1, timeout: float = 15, **fields: str) -> Message:
        """Wait for the so-manyth event of this name and these values."""
        await until(
            lambda: len(self.named(event, **fields)) >= count,
            timeout,
            lambda: f"{count} times {event} {fields}; there were {[m['Event'] for m in self.events]}",
        )
        return self.named(event, **fields)[count - 1]

    async def redirect(self, channel: str, dial: str, uri: str, *, extension: str | None = None) -> None:
        """What an agent does with an instruction to dial: name the URI and the attempt, then redirect."""
        await self._redirect(channel, "callyard-dial", extension or dial, CALLYARD_URI=uri, CALLYARD_DIAL=dial)

    async def tell(self, channel: str, dial: str, notice: str) -> None:
        """What an agent does with an instruction to tell the caller something."""
        await self._redirect(channel, "callyard-tell", dial, CALLYARD_NOTICE=notice, CALLYARD_DIAL=dial)

    async def _redirect(self, channel: str, context: str, extension: str, **variables: str) -> None:
        for name, value in variables.items():
            assert (await self.action("Setvar", Channel=channel, Variable=name, Value=value))["Response"] == "Success"
        answer = await self.action("Redirect", Channel=channel, Context=context, Exten=extension, Priority="1")
        assert answer["Response"] == "Success", answer


@contextlib.asynccontextmanager
async def connected(ami: AmiSettings) -> AsyncIterator[RawAmi]:
    """A manager client that has logged in."""
    reader, writer = await asyncio.open_connection(ami.host, ami.port)
    greeting = await reader.readline()
    assert greeting.startswith(b"Asterisk Call Manager/"), greeting
    client = RawAmi(reader, writer)
    reading = asyncio.create_task(client.read())
    try:
        answer = await client.action("Login", Username=ami.username, Secret=ami.secret.get_secret_value())
        assert answer["Response"] == "Success", answer
        yield client
    finally:
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError, asyncio.IncompleteReadError):
            await reading
        writer.close()


@contextlib.asynccontextmanager
async def parked(
    gateway: asterisk.Gateway, client: RawAmi, directory: Path, conference: str, *, caller: str = "493012345678"
) -> AsyncIterator[tuple[sipp.Sipp, Message]]:
    """A caller who entered this number and is parked: the caller, and the event that told so."""
    calls = [sipp.Call(caller, f"{conference}#")]
    async with sipp.calling(directory / "caller", (gateway.sip_host, gateway.sip_port), calls) as callers:
        yield callers, await client.event("ParkedCall", CALLYARD_CONFERENCE=conference)


_HUNG_UP_IN_MUSIC = "res_musiconhold.c: Failed to write frame"
"""A caller hung up between two frames of music: nothing that configuration or dialplan could avoid."""


def problems(log: str) -> Iterator[str]:
    """The warnings and errors in a log of Asterisk."""
    lines = (line for line in log.splitlines() if " WARNING[" in line or " ERROR[" in line)
    return (line for line in lines if _HUNG_UP_IN_MUSIC not in line)
