"""A proxy between an agent and a real Asterisk's manager interface, for crashes and cuts at a chosen byte.

It passes everything on until it is told otherwise: what Asterisk says can be held back (`AmiProxy.hold`), and one of
the agent's changing actions can be a `Trap`: Asterisk gets what the agent wrote up to there, then something happens.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

from callyard.settings import AmiSettings

CHANGING = ("Setvar", "Redirect")
"""The actions by which an agent changes something."""
Place = Literal["before", "inside", "after"]


@dataclass
class Trap:
    """Springs at the ``number``-th changing action (from 1): before it, after half of its bytes, or once Asterisk has
    answered it. From then on the agent reads nothing of that connection; ``then`` is called, and the connection cut."""

    number: int
    place: Place
    then: Callable[[], None] = lambda: None
    sprung: asyncio.Event = field(default_factory=asyncio.Event)


class AmiProxy:
    """One proxy; ``changes`` are the names of the changing actions that the agent wrote, in order."""

    def __init__(self, ami: AmiSettings) -> None:
        self._ami = ami
        self._passing = asyncio.Event()
        self._passing.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.changes: list[str] = []
        self.trap: Trap | None = None
        self.port = 0

    @property
    def settings(self) -> AmiSettings:
        """Asterisk's manager interface by way of this proxy."""
        return self._ami.model_copy(update={"host": "127.0.0.1", "port": self.port})

    def hold(self) -> None:
        """Keep back what Asterisk says from now on."""
        self._passing.clear()

    def release(self) -> None:
        """Pass it on again, first what was kept back."""
        self._passing.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        upstream, to_asterisk = await asyncio.open_connection(self._ami.host, self._ami.port)
        link = _Link(upstream, writer, self._passing)
        answers = asyncio.create_task(link.pass_answers())
        try:
            await self._pass_actions(reader, to_asterisk, link)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the agent ended
        finally:
            answers.cancel()
            await asyncio.gather(answers, return_exceptions=True)
            writer.transport.abort()
            to_asterisk.close()
            self._tasks.discard(task)

    async def _pass_actions(
        self, reader: asyncio.StreamReader, to_asterisk: asyncio.StreamWriter, link: _Link
    ) -> None:  # fmt: skip
        while True:
            action = await reader.readuntil(b"\r\n\r\n")
            name = re.search(rb"(?m)^Action: (\w+)", action)
            assert name is not None, action
            trap = None
            # On a channel: that an agent is there stands in a global variable.
            if name[1].decode() in CHANGING and re.search(rb"(?m)^Channel: ", action):
                self.changes.append(name[1].decode())
                trap = self.trap if self.trap is not None and len(self.changes) == self.trap.number else None
            if trap is None:
                to_asterisk.write(action)
                continue
            link.deaf = True
            if trap.place == "inside":
                to_asterisk.write(action[: len(action) // 2])
            elif trap.place == "after":
                to_asterisk.write(action)
                number = re.search(rb"(?m)^ActionID: (\S+)", action)
                assert number is not None, action
                await link.answered(number[1])
            await to_asterisk.drain()
            trap.then()
            trap.sprung.set()
            return

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class _Link:
    """Asterisk's side of one connection. ``deaf``: the agent gets nothing more of it."""

    def __init__(self, upstream: asyncio.StreamReader, writer: asyncio.StreamWriter, passing: asyncio.Event) -> None:
        self._upstream = upstream
        self._writer = writer
        self._passing = passing
        self._unheard = b""
        self._more = asyncio.Event()
        self.deaf = False

    async def pass_answers(self) -> None:
        while data := await self._upstream.read(65536):
            if self.deaf:
                self._unheard += data
                self._more.set()
                continue
            await self._passing.wait()
            with contextlib.suppress(ConnectionError):
                self._writer.write(data)
                await self._writer.drain()
        self._writer.close()

    async def answered(self, action_id: bytes) -> None:
        async def heard() -> None:
            while b"ActionID: " + action_id not in self._unheard:
                self._more.clear()
                await self._more.wait()

        await asyncio.wait_for(heard(), 10)


@asynccontextmanager
async def ami_proxy(ami: AmiSettings) -> AsyncIterator[AmiProxy]:
    """A proxy on a free port until the block ends."""
    made = AmiProxy(ami)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0, limit=2**20)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        await made.close()
