"""A manager interface made of a socket, for what a real Asterisk cannot be made to do: break off, stay silent, babble.

It speaks what the real one was seen to speak; whatever a test wants otherwise, it says in `AmiDouble.on`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from callyard.settings import AmiSettings

GREETING = b"Asterisk Call Manager/11.0.0\r\n"
SECRET = "s3cret"

Action = dict[str, str]


class Connection:
    """One client of the double."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    def write(self, data: bytes) -> None:
        self._writer.write(data)

    def message(self, *headers: str) -> None:
        """One message of these ``Name: value`` lines."""
        self.write("".join(f"{header}\r\n" for header in headers).encode() + b"\r\n")

    def answer(self, action: Action, *headers: str) -> None:
        response, *rest = headers or ("Response: Success",)
        self.message(response, f"ActionID: {action['ActionID']}", *rest)

    def listing(self, action: Action, *entries: tuple[str, ...]) -> None:
        """The answer to an action that lists, as Asterisk writes it: in one piece."""
        self.answer(action, "Response: Success", "EventList: start", "Message: will follow")
        for entry in entries:
            self.message(*entry, f"ActionID: {action['ActionID']}")
        self.message(f"Event: {action['Action']}Complete", f"ActionID: {action['ActionID']}", "EventList: Complete")

    def close(self) -> None:
        self._writer.close()

    def abort(self) -> None:
        self._writer.transport.abort()


class AmiDouble:
    """The double: ``actions`` is all that it was told, ``connections`` who is connected or was."""

    def __init__(self) -> None:
        self.port = 0
        self.greeting = GREETING
        self.actions: list[Action] = []
        self.connections: list[Connection] = []
        self.parked: list[tuple[str, ...]] = []
        self.channels: list[tuple[str, ...]] = []
        self.on: dict[str, Callable[[Connection, Action], None]] = {}
        """What to do at an action, instead of what Asterisk would."""
        self._told = asyncio.Condition()

    def settings(self, **changes: object) -> AmiSettings:
        values: dict[str, object] = {"host": "127.0.0.1", "port": self.port, "secret": SECRET}
        return AmiSettings.model_validate({**values, "reconnect_max_seconds": 0.5, **changes})

    def named(self, name: str) -> list[Action]:
        """The actions of one kind so far."""
        return [action for action in self.actions if action["Action"] == name]

    async def told(self, name: str, count: int = 1) -> list[Action]:
        """Wait until so many actions of one kind have come."""
        async with self._told:
            await asyncio.wait_for(self._told.wait_for(lambda: len(self.named(name)) >= count), 10)
        return self.named(name)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(writer)
        self.connections.append(connection)
        connection.write(self.greeting)
        try:
            while True:
                text = (await reader.readuntil(b"\r\n\r\n")).decode()
                action = dict(line.split(": ", 1) for line in text.strip().split("\r\n"))
                self.actions.append(action)
                self.on.get(action["Action"], self._as_asterisk)(connection, action)
                async with self._told:
                    self._told.notify_all()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def _as_asterisk(self, connection: Connection, action: Action) -> None:
        kind = action["Action"]
        if kind == "Login" and action["Secret"] != SECRET:
            connection.answer(action, "Response: Error", "Message: Authentication failed")
            connection.close()
        elif kind == "Login":
            connection.answer(action, "Response: Success", "Message: Authentication accepted")
            connection.message("Event: FullyBooted", "Privilege: system,all", "Status: Fully Booted")
        elif kind == "ParkedCalls":
            connection.listing(action, *self.parked)
        elif kind == "Status":
            connection.listing(action, *self.channels)
        else:
            connection.answer(action)


@asynccontextmanager
async def ami_double(port: int = 0) -> AsyncIterator[AmiDouble]:
    """A double until the block ends, on this port; 0: a free one."""
    double = AmiDouble()
    server = await asyncio.start_server(double.serve, "127.0.0.1", port)
    double.port = server.sockets[0].getsockname()[1]
    try:
        yield double
    finally:
        server.close()
        for connection in double.connections:
            connection.close()
