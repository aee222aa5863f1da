"""One connection to FreeSWITCH's event socket: connect, log in, ask in order, hand on what comes.

It must never let the socket wait: what is read is handed to a function that returns at once (a listener that doesn't
read loses events at FreeSWITCH, silently at first, and is cut off later). And it must never match an answer to the
wrong question: answers come in the order of the commands, so that after a time-out the connection is given up.

Each way to fail has an error of its own, because each is mended elsewhere; all are `EslError`, and after any of them
only a new connection helps. Reconnecting is the caller's; `Backoff` says when.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from callyard.settings import EslSettings
from callyard.tasks import within
from fs_hooks import esl

READ_BYTES = 256 * 1024
FIRST_DELAY_SECONDS = 0.25


class EslError(Exception):
    """The connection to FreeSWITCH can't be used, or not any more. The text says why and what to check."""


class UnreachableError(EslError):
    """Nothing takes connections there."""


class ClosedError(EslError):
    """FreeSWITCH, or what is between, closed the connection."""


class NoAnswerError(EslError):
    """FreeSWITCH takes connections but doesn't answer in time."""


class RejectedError(EslError):
    """FreeSWITCH's access list refuses this address."""


class WrongPasswordError(EslError):
    """FreeSWITCH refuses the password."""


class CommandRefusedError(EslError):
    """FreeSWITCH refuses a command that the hook can't do without."""


class NotFreeSwitchError(EslError):
    """What listens there doesn't speak the event socket protocol. ``rubbish`` is where that showed."""

    def __init__(self, text: str, rubbish: bytes = b"") -> None:
        super().__init__(text)
        self.rubbish = rubbish


OnFrame = Callable[[esl.Event | esl.UnknownFrame | esl.Unreadable], None]


class Link:
    """A connection that is logged in. Got from `connect`."""

    def __init__(
        self, settings: EslSettings, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, on_frame: OnFrame
    ) -> None:
        self._where = f"{settings.host}:{settings.port}"
        self._timeout = settings.connect_timeout_seconds
        self._reader = reader
        self._writer = writer
        self._on_frame = on_frame
        self._frames = esl.Reader()
        self._waiting: deque[asyncio.Future[esl.Frame]] = deque()
        self._greeting = self._expect_one()
        self._reading = asyncio.create_task(self._read(), name="esl-read")
        self._reading.add_done_callback(self._end_waiting)

    async def log_in(self, password: str) -> None:
        """Wait for FreeSWITCH's request and answer it with the password."""
        greeting = await self._answer(self._greeting, "its greeting")
        if isinstance(greeting, esl.RudeRejection):
            raise RejectedError(
                f"FreeSWITCH at {self._where} rejects this address ({greeting.text}): allow it in"
                " event_socket.conf.xml (apply-inbound-acl)"
            )
        if not isinstance(greeting, esl.AuthRequest):
            raise self._nonsense(f"it began with {greeting!r:.100} instead of auth/request")
        reply = await self._reply("auth", password)
        if reply.text.startswith("-ERR"):
            raise WrongPasswordError(
                f"FreeSWITCH at {self._where} refuses the password ({reply.text}): CALLYARD_ESL_PASSWORD must be the"
                " one in its event_socket.conf.xml"
            )

    async def command(self, *words: str) -> str:
        """Send a command and return its reply. Raises `CommandRefusedError` for ``-ERR``."""
        return self._granted(await self._reply(*words), words[0])

    async def api(self, *words: str) -> str:
        """Send an ``api`` command and return its answer, whatever it says. Raises `CommandRefusedError`."""
        frame = await self._ask("api", *words)
        if isinstance(frame, esl.CommandReply):  # so mod_event_socket refuses what isn't permitted to this user
            return self._granted(frame, f"api {words[0]}")
        if not isinstance(frame, esl.ApiResponse):
            raise self._nonsense(f"it answered 'api' with {type(frame).__name__}")
        return frame.body

    async def wait(self, seconds: float) -> None:
        """Return after so many seconds; raise an `EslError` at once when the connection is over before."""
        await asyncio.wait({self._reading}, timeout=seconds)
        if self._reading.done():
            self._reading.result()

    async def close(self) -> None:
        """End the connection, whatever state it is in."""
        self._reading.cancel()
        await asyncio.wait({self._reading})
        self._writer.transport.abort()

    def _granted(self, reply: esl.CommandReply, what: str) -> str:
        if reply.text.startswith("-ERR"):
            raise CommandRefusedError(
                f"FreeSWITCH at {self._where} refuses '{what}' ({reply.text}): allow it to the user of the event socket"
            )
        return reply.text

    async def _reply(self, *words: str) -> esl.CommandReply:
        frame = await self._ask(*words)
        if not isinstance(frame, esl.CommandReply):
            raise self._nonsense(f"it answered '{words[0]}' with {type(frame).__name__}")
        return frame

    async def _ask(self, *words: str) -> esl.Frame:
        data = esl.command(*words)
        if self._reading.done():
            self._reading.result()
        answer = self._expect_one()
        self._writer.write(data)
        return await self._answer(answer, f"an answer to '{words[0]}'")

    def _expect_one(self) -> asyncio.Future[esl.Frame]:
        answer: asyncio.Future[esl.Frame] = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        return answer

    async def _answer(self, answer: asyncio.Future[esl.Frame], what: str) -> esl.Frame:
        try:
            return await within(answer, self._timeout)
        except asyncio.TimeoutError:
            raise NoAnswerError(
                f"{self._where} takes connections but didn't send {what} within {self._timeout:g} s: is it FreeSWITCH,"
                " and is it well?"
            ) from None

    async def _read(self) -> None:
        while True:
            try:
                data = await self._reader.read(READ_BYTES)
            except OSError as error:
                raise ClosedError(f"the connection to FreeSWITCH at {self._where} broke: {error}") from None
            if not data:
                where = "" if self._frames.at_boundary else " in the middle of a frame"
                raise ClosedError(f"FreeSWITCH at {self._where} closed the connection{where}")
            try:
                frames = self._frames.feed(data)
            except esl.RemoteProtocolError as error:
                for frame in error.frames:
                    self._take(frame)
                raise self._nonsense(str(error), error.rubbish) from None
            for frame in frames:
                self._take(frame)

    def _take(self, frame: esl.Frame) -> None:
        if isinstance(frame, (esl.Event, esl.UnknownFrame, esl.Unreadable)):
            self._on_frame(frame)
        elif isinstance(frame, esl.DisconnectNotice):
            if not frame.linger:  # after linger there is more to come; the end is the closed connection
                raise ClosedError(f"FreeSWITCH at {self._where} ends the connection: {frame.text!r:.100}")
        elif not self._waiting:
            raise self._nonsense(f"it answered what wasn't asked: {frame!r:.100}")
        else:
            answer = self._waiting.popleft()
            if not answer.done():
                answer.set_result(frame)

    def _end_waiting(self, reading: asyncio.Task[None]) -> None:
        error = None if reading.cancelled() else reading.exception()
        for answer in self._waiting:
            if error is None:
                answer.cancel()
            elif not answer.done():
                answer.set_exception(error)
        self._waiting.clear()

    def _nonsense(self, what: str, rubbish: bytes = b"") -> NotFreeSwitchError:
        return NotFreeSwitchError(
            f"what listens at {self._where} isn't FreeSWITCH's event socket, or is broken: {what}: check"
            " CALLYARD_ESL_HOST and _PORT",
            rubbish,
        )


@asynccontextmanager
async def connect(settings: EslSettings, on_frame: OnFrame) -> AsyncIterator[Link]:
    """A connection that is logged in; raises `EslError` for each way in which that fails.

    ``on_frame`` is called with each event and with each frame that makes no sense, in order, and must return at once.
    What it raises ends the connection and is raised by the `Link`'s next method.
    """
    try:
        reader, writer = await within(
            asyncio.open_connection(settings.host, settings.port, limit=READ_BYTES), settings.connect_timeout_seconds
        )
    except asyncio.TimeoutError:
        raise UnreachableError(
            f"no connection to FreeSWITCH at {settings.host}:{settings.port} within"
            f" {settings.connect_timeout_seconds:g} s: check CALLYARD_ESL_HOST and _PORT, and firewalls between"
        ) from None
    except OSError as error:
        raise UnreachableError(
            f"FreeSWITCH can't be reached at {settings.host}:{settings.port} ({_cause(error)}): check that it"
            " runs with mod_event_socket, and CALLYARD_ESL_HOST and _PORT"
        ) from None
    link = Link(settings, reader, writer, on_frame)
    try:
        await link.log_in(settings.password.get_secret_value())
        yield link
    finally:
        await link.close()


def _cause(error: OSError) -> str:
    # asyncio's own text hides the cause behind "Connect call failed".
    return os.strerror(error.errno) if error.errno is not None and error.errno > 0 else str(error)


class Backoff:
    """How long to wait before the next attempt: doubling from a quarter second to ``most`` seconds.

    Up to half of it is left to chance, so that the hooks of many nodes don't call at the same moment.
    """

    def __init__(self, most: float) -> None:
        self._most = most
        self._next = min(FIRST_DELAY_SECONDS, most)

    def delay(self) -> float:
        """Seconds to wait now."""
        now, self._next = self._next, min(self._next * 2, self._most)
        return now * random.uniform(0.5, 1)  # noqa: S311 - spreads load, guards nothing

    def reset(self) -> None:
        """Begin anew: it worked."""
        self._next = min(FIRST_DELAY_SECONDS, self._most)
