"""An observer at Asterisk's manager interface that notes when each message arrived; it also sends bare actions.

Why not the agent's client: the floor must not hold what is measured against it. A message's time is that of the read
that completed it, by this machine's clock; messages of one read share it.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from callyard.errors import CommandError
from callyard.settings import AmiSettings


class Message:
    """One message: its headers (the first of each name) and the channel variables that it carries."""

    def __init__(self, raw: bytes, at_ns: int) -> None:
        self.at_ns = at_ns
        """When it arrived: nanoseconds since 1970-01-01 UTC."""
        self.headers: dict[str, str] = {}
        self.variables: dict[str, str] = {}
        for line in raw.decode(errors="replace").split("\r\n"):
            name, _, value = line.partition(": ")
            if name in {"ChanVariable", "ParkeeChanVariable"}:
                variable, _, content = value.partition("=")
                self.variables[variable] = content
            else:
                self.headers.setdefault(name, value)

    def __getitem__(self, name: str) -> str:
        return self.headers.get(name, "")


class Ami(asyncio.Protocol):
    """A connection. Every event goes to ``on_event`` at once; answers go to who waits for them."""

    def __init__(self, on_event: Callable[[Message], None]) -> None:
        self._on_event = on_event
        self._rest = b""
        self._ids = itertools.count(1)
        self._answers: dict[str, asyncio.Future[Message]] = {}
        self._transport: asyncio.WriteTransport | None = None
        self._changed = asyncio.Event()

    def connection_made(self, transport: asyncio.WriteTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        at_ns = time.time_ns()
        *messages, self._rest = (self._rest + data).split(b"\r\n\r\n")
        for raw in messages:
            message = Message(raw, at_ns)
            answer = self._answers.pop(message["ActionID"], None) if "Response" in message.headers else None
            if answer is not None:
                if not answer.done():
                    answer.set_result(message)
            elif "Event" in message.headers:
                self._on_event(message)
        self._changed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(CommandError(f"Asterisk ended the observer's connection ({exc or 'closed'})"))

    def send(self, *actions: Mapping[str, str]) -> asyncio.Future[Message]:
        """Write actions in one piece; the future is the answer to the last one."""
        assert self._transport is not None
        number, lines = "", []
        for fields in actions:
            number = str(next(self._ids))
            lines += [*(f"{name}: {value}" for name, value in fields.items()), f"ActionID: {number}", ""]
        self._answers[number] = asyncio.get_running_loop().create_future()
        self._transport.write(("\r\n".join(lines) + "\r\n").encode())
        return self._answers[number]

    async def until(self, holds: Callable[[], bool], seconds: float, what: Callable[[], str]) -> None:
        """Wait until the events so far fulfil a condition. Raises `CommandError` with ``what`` after ``seconds``."""
        deadline = time.monotonic() + seconds
        while not holds():
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), max(0.0, deadline - time.monotonic()))
            except asyncio.TimeoutError:
                raise CommandError(f"not within {seconds:g} s: {what()}") from None

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.close()


@asynccontextmanager
async def connected(settings: AmiSettings, on_event: Callable[[Message], None]) -> AsyncIterator[Ami]:
    """A connection that is logged in."""
    loop = asyncio.get_running_loop()
    _, ami = await loop.create_connection(lambda: Ami(on_event), settings.host, settings.port)
    try:
        secret = settings.secret.get_secret_value()
        try:
            login = {"Action": "Login", "Username": settings.username, "Secret": secret}
            answer = await asyncio.wait_for(ami.send(login), 10)
        except asyncio.TimeoutError:
            raise CommandError("Asterisk does not answer the observer's login within 10 s") from None
        if answer["Response"] != "Success":
            raise CommandError(f"Asterisk refuses the observer: {answer['Message']}")
        yield ami
    finally:
        ami.close()
