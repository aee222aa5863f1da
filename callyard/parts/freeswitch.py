"""FreeSWITCH's event socket as a double: a server that speaks recorded bytes, for tests, the demo and the bench.

Why a double: a FreeSWITCH with its modules can't be had from a package registry. What it says was recorded from a real
one (``recordings/``); only names, ids, sequence, timestamp and lengths are put in anew. It must never say what the
recordings don't show, but for what `freeswitch_api` answers, and it isn't FreeSWITCH: it has no calls, no media, and
its events are always in order.

As a process of its own (``python -m callyard.parts.freeswitch --port 8021``) it takes one command a line on its
standard input, a pipe, and ends with it: ``open NUMBER [INSTANCE]``, ``close NUMBER-OR-INSTANCE``, ``drop``. It
answers each by one JSON line; those of ``open`` and ``close`` say when the bytes were written (``monotonic_ns``, the
machine's monotonic clock, and ``wall_ns``).
"""

from __future__ import annotations

import argparse
import asyncio
import hmac
import os
import re
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from importlib import resources
from types import TracebackType
from typing import Literal, NamedTuple

import orjson
import uvloop

from callyard.parts.freeswitch_api import CORE_VARIABLES, Api

DEFAULT_PASSWORD = "ClueCon"  # noqa: S105 - FreeSWITCH's own well-known default, which its documentation tells to change
EventFormat = Literal["plain", "json"]
_FORMATS: tuple[EventFormat, ...] = ("plain", "json")


class Written(NamedTuple):
    """What was done, and when its first bytes were written (just before the write)."""

    conference: str
    instance: str
    monotonic_ns: int
    wall_ns: int


class _Frame(NamedTuple):
    whole: bytes
    body: bytes


def recording(name: str) -> bytes:
    """One of the recordings that come with the package."""
    return resources.files(__package__).joinpath("recordings").joinpath(f"{name}.esl").read_bytes()


def frames(data: bytes) -> list[_Frame]:
    """A recording's frames. The recordings are sound: this is no reader for anything else."""
    found, start = [], 0
    while start < len(data):
        head_end = data.index(b"\n\n", start) + 2
        length = re.search(rb"^Content-Length: ([0-9]+)$", data[start:head_end], re.MULTILINE)
        end = head_end + (int(length[1]) if length else 0)
        found.append(_Frame(data[start:end], data[head_end:end]))
        start = end
    return found


class _Recorded:
    """The recorded frames that the double speaks with."""

    def __init__(self) -> None:
        lifecycles = {fmt: frames(recording(f"lifecycle-{fmt}")) for fmt in _FORMATS}
        plain = lifecycles["plain"]
        self.auth_request, self.accepted = plain[0].whole, plain[1].whole
        self.no_events, self.bye, self.goodbye = (frame.whole for frame in plain[-3:])
        self.refused = b"".join(frame.whole for frame in frames(recording("auth-wrong"))[1:])
        self.subscribed = {fmt: recorded[2].whole for fmt, recorded in lifecycles.items()}
        self.none_listed = next(f.whole for f in plain if f.body == b"[]")
        self.listed = next(f.body for f in plain if f.body.startswith(b"[{"))
        self.events = {
            fmt: {action: _event(recorded, fmt, action) for action in _ACTIONS} for fmt, recorded in lifecycles.items()
        }


_ACTIONS = ("conference-create", "add-member", "del-member", "conference-destroy")


def _event(recorded: list[_Frame], fmt: EventFormat, action: str) -> bytes:
    # The last of an action: the del-member that leaves nobody. Of the first add-member there is no other in size 1.
    mark = (f"\nAction: {action}\n" if fmt == "plain" else f'"Action":"{action}"').encode()
    found = [frame.body for frame in recorded if mark in frame.body]
    return found[0] if action == "add-member" else found[-1]


def _put(fmt: EventFormat, body: bytes, values: Mapping[str, str]) -> bytes:
    """An event's frame with these headers' values put in; its length follows."""
    for name, value in values.items():
        if fmt == "plain":
            body = re.sub(rf"(?m)^{name}: .*$".encode(), f"{name}: {value}".encode(), body)
        else:
            body = re.sub(f'"{name}":"[^"]*"'.encode(), f'"{name}":"{value}"'.encode(), body)
    return f"Content-Length: {len(body)}\nContent-Type: text/event-{fmt}\n\n".encode() + body


class _Client:
    """One connection to the double."""

    def __init__(self, task: asyncio.Task[None], writer: asyncio.StreamWriter, piece: int | None) -> None:
        self.task = task
        self._writer = writer
        self._piece = piece
        self.subscribed: EventFormat | None = None

    def write(self, data: bytes) -> None:
        if self._writer.is_closing():
            return
        for start in range(0, len(data), self._piece or len(data)):
            self._writer.write(data[start : start + (self._piece or len(data))])

    def abort(self) -> None:
        self._writer.transport.abort()
        self.task.cancel()

    async def close(self) -> None:
        try:
            await self._writer.drain()
        except ConnectionError:
            return
        self._writer.close()


class FreeSwitch:
    """The double. ``piece`` is the number of bytes of each write, to try readers; None: whole frames.

    ``answering`` is set; while a test has cleared it, commands stay without an answer, like those to a stopped process.
    """

    def __init__(self, password: str = DEFAULT_PASSWORD, port: int = 0, *, piece: int | None = None) -> None:
        self.password = password
        self.port = port
        self.piece = piece
        self.conferences: dict[str, tuple[str, float]] = {}
        self.snapshots = 0
        self.api = Api()
        """Answers those ``api`` commands that were not recorded, and holds what they set."""
        self.api.counts = lambda: {number: 1 for number, _ in self.conferences.values()}
        self.denied: set[str] = set()
        """The ``api`` commands that the user of the event socket isn't allowed (mod_event_socket.c)."""
        self.obeyed: list[str] = []
        """The commands that came, oldest first, without the password."""
        self.subscriptions: list[str] = []
        """The commands by which clients subscribed to events."""
        self.answering = asyncio.Event()
        self.answering.set()
        self._recorded = _Recorded()
        self._clients: set[_Client] = set()
        self._server: asyncio.Server | None = None
        self._sequence = 1000
        self._changed = asyncio.Event()

    async def __aenter__(self) -> FreeSwitch:
        await self.listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop_listening()
        self.drop_connections()
        await asyncio.gather(*(client.task for client in self._clients), return_exceptions=True)

    async def listen(self) -> None:
        """Take connections on 127.0.0.1; the first time on a free port if none was given, later on the same."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def stop_listening(self) -> None:
        """Refuse new connections; those that exist stay."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def drop_connections(self) -> None:
        """Reset all connections."""
        for client in list(self._clients):
            client.abort()

    def kill(self) -> None:
        """What a killed FreeSWITCH does: no destroy events, no conferences, no connections, nobody who listens."""
        self.stop_listening()
        self.drop_connections()
        self.conferences.clear()
        self.api.variables = dict(CORE_VARIABLES)

    async def subscribers(self, count: int = 1) -> None:
        """Wait until so many connections have subscribed to events."""
        await self._until(lambda: sum(client.subscribed is not None for client in self._clients) >= count)

    async def asked(self, snapshots: int) -> None:
        """Wait until so many snapshots were answered since the start."""
        await self._until(lambda: self.snapshots >= snapshots)

    def open(self, conference: str, instance: str | None = None) -> Written:
        """A conference begins, and its first member joins."""
        instance = instance or str(uuid.uuid4())
        self.conferences[instance] = (conference, time.time())
        written = self._say("conference-create", conference, instance)
        self._say("add-member", conference, instance)
        return written

    def close(self, instance: str) -> Written:
        """The last member leaves, and the conference ends; ``instance`` may also be a conference's number."""
        found = [i for i, (number, _) in self.conferences.items() if instance in (i, number)]
        if not found:
            raise LookupError(f"there is no conference {instance!r}")
        conference, _ = self.conferences.pop(found[0])
        self._say("del-member", conference, found[0])
        return self._say("conference-destroy", conference, found[0])

    def forget(self, instance: str) -> None:
        """A conference ends without a word: what a hook misses while it is away."""
        del self.conferences[instance]

    def say(self, data: bytes) -> None:
        """Write these bytes to all subscribers."""
        for client in self._subscribed():
            client.write(data)

    def _subscribed(self) -> list[_Client]:
        return [client for client in self._clients if client.subscribed is not None]

    def _say(self, action: str, conference: str, instance: str) -> Written:
        self._sequence += 1
        wall_ns = time.time_ns()
        values = {
            "Conference-Name": conference,
            "Conference-Unique-ID": instance,
            "Event-Sequence": str(self._sequence),
            "Event-Date-Timestamp": str(wall_ns // 1000),
        }
        said = {fmt: _put(fmt, self._recorded.events[fmt][action], values) for fmt in _FORMATS}
        written = Written(conference, instance, time.monotonic_ns(), time.time_ns())
        for client in self._subscribed():
            if client.subscribed is not None:
                client.write(said[client.subscribed])
        return written

    def _list(self) -> bytes:
        if not self.conferences:
            return self._recorded.none_listed
        entries = []
        for instance, (conference, since) in self.conferences.items():
            entry = self._recorded.listed.decode().removeprefix("[").removesuffix("]")
            entry = re.sub(r'("conference_name":\s*)"[^"]*"', rf'\g<1>"{conference}"', entry)
            entry = re.sub(r'("conference_uuid":\s*)"[^"]*"', rf'\g<1>"{instance}"', entry)
            entries.append(re.sub(r'("run_time":\s*)[0-9]+', rf"\g<1>{int(time.time() - since)}", entry))
        return _answer("[" + ", ".join(entries) + "]")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - asyncio runs this as a task; tells the type checker
        client = _Client(task, writer, self.piece)
        self._clients.add(client)
        try:
            client.write(self._recorded.auth_request)
            if await self._authenticate(reader, client):
                while await self._obey(await _command(reader), client):
                    self._note()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # it left, or was dropped (asyncio would log that): nothing more to say to it
        finally:
            self._clients.discard(client)
            await client.close()
            self._note()

    async def _authenticate(self, reader: asyncio.StreamReader, client: _Client) -> bool:
        word, _, password = (await _command(reader)).partition(" ")
        await self.answering.wait()
        accepted = word == "auth" and hmac.compare_digest(password.encode(), self.password.encode())
        client.write(self._recorded.accepted if accepted else self._recorded.refused)
        return accepted

    async def _obey(self, command: str, client: _Client) -> bool:
        await self.answering.wait()
        words = command.split()
        self.obeyed.append(command)
        if words[:1] == ["event"] and len(words) > 2 and words[1] in _FORMATS:
            client.subscribed = "json" if words[1] == "json" else "plain"
            self.subscriptions.append(command)
            client.write(self._recorded.subscribed[client.subscribed])
        elif words[:1] == ["api"] and len(words) > 1 and words[1] in self.denied:
            client.write(b"Content-Type: command/reply\nReply-Text: -ERR permission denied\n\n")
        elif words == ["api", "conference", "json_list"]:
            client.write(self._list())
            self.snapshots += 1
        elif words == ["api", "status"]:
            client.write(
                _answer(f"UP 0 years, 0 days\nFreeSWITCH double is ready\n{len(self.conferences)} conference(s)\n")
            )
        elif words == ["noevents"]:
            client.subscribed = None
            client.write(self._recorded.no_events)
        elif words == ["exit"]:
            client.write(self._recorded.bye + self._recorded.goodbye)
            return False
        elif words[:1] == ["api"] and len(words) > 1:
            name, _, arguments = command.removeprefix("api ").partition(" ")
            answer = self.api.execute(name, arguments)
            # mod_event_socket.c, api_exec: what isn't there, and what answered nothing.
            client.write(
                _answer(f"-ERR {name} Command not found!\n" if answer is None else answer or "-ERR no reply\n")
            )
        else:
            client.write(b"Content-Type: command/reply\nReply-Text: -ERR command not found\n\n")
        return True

    def _note(self) -> None:
        self._changed.set()

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            self._changed.clear()
            await self._changed.wait()


def _answer(text: str) -> bytes:
    body = text.encode()
    return f"Content-Type: api/response\nContent-Length: {len(body)}\n\n".encode() + body


async def _command(reader: asyncio.StreamReader) -> str:
    return (await reader.readuntil(b"\n\n")).decode(errors="replace").strip()


def _carry_out(double: FreeSwitch, line: str) -> dict[str, object]:
    match line.split():
        case ["open", number, *instance] if len(instance) <= 1:
            return {"did": "open", **double.open(number, *instance)._asdict()}
        case ["close", which]:
            try:
                return {"did": "close", **double.close(which)._asdict()}
            except LookupError as error:
                return {"error": str(error)}
        case ["drop"]:
            double.drop_connections()
            return {"did": "drop"}
    return {"error": f"unknown command {line!r}: open NUMBER [INSTANCE], close NUMBER-OR-INSTANCE, drop"}


async def _run(port: int, password: str) -> None:
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    async with FreeSwitch(password, port) as double:
        _print({"did": "listen", "port": double.port})
        while line := await commands.readline():
            _print(_carry_out(double, line.decode().strip()))


def _print(said: Mapping[str, object]) -> None:
    sys.stdout.write(orjson.dumps(said).decode() + "\n")
    sys.stdout.flush()


def main() -> None:
    """Run the double as a process of its own."""
    parser = argparse.ArgumentParser(description="A double of FreeSWITCH's event socket that speaks recorded bytes.")
    parser.add_argument("--port", type=int, default=0, help="TCP port on 127.0.0.1; 0: a free one (it is printed)")
    parser.add_argument("--password-env", metavar="NAME", help="environment variable with the password")
    arguments = parser.parse_args()
    if arguments.password_env and arguments.password_env not in os.environ:
        parser.error(f"{arguments.password_env} is not set")
    uvloop.install()
    asyncio.run(
        _run(arguments.port, os.environ[arguments.password_env] if arguments.password_env else DEFAULT_PASSWORD)
    )


if __name__ == "__main__":
    main()
