"""One subscription to a channel of Redis: connect, log in, subscribe, hand on each message.

Reconnecting is the caller's: messages may be missing then. A Redis that falls silent is asked whether it is there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from callyard.settings import BigBlueButtonSettings
from callyard.tasks import within
from fs_hooks import resp

READ_BYTES = 256 * 1024
SILENCE_SECONDS = 10.0
"""A channel that says nothing for so long is asked for a sign of life, by whoever waits on it."""


class ChannelError(Exception):
    """The subscription can't be had, or not any more. The text says why and what to check."""


class LogInError(ChannelError):
    """Redis refuses the password, or wants one."""


OnMessage = Callable[[bytes | resp.TooLarge], None]


class Channel:
    """A subscription. Got from `subscribed`."""

    def __init__(self, where: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, timeout: float) -> None:
        self._where = where
        self._reader = reader
        self._writer = writer
        self._timeout = timeout
        self._replies = resp.Reader()
        self._reading: asyncio.Task[None] | None = None
        self._heard = time.monotonic()
        self._asked: float | None = None

    async def subscribe(self, channel: str, password: str | None, on_message: OnMessage) -> None:
        """Log in and subscribe; from then on each message goes to ``on_message``, which must return at once."""
        if password is not None:
            self._writer.write(resp.command(["AUTH", password]))
        self._writer.write(resp.command(["SUBSCRIBE", channel]))
        try:
            rest = await within(self._subscription(), self._timeout)
        except asyncio.TimeoutError:
            raise ChannelError(f"Redis at {self._where} takes connections but doesn't answer") from None
        self._reading = asyncio.create_task(self._read(rest, on_message), name="redis-read")

    async def wait(self, seconds: float) -> None:
        """Return after so many seconds; raise a `ChannelError` at once when the subscription is over before."""
        if self._reading is None:
            raise RuntimeError("nothing is subscribed")
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            await asyncio.wait({self._reading}, timeout=min(left, SILENCE_SECONDS))
            if self._reading.done():
                self._reading.result()
            self._look_for_life()

    async def close(self) -> None:
        """End the connection, whatever state it is in."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait({self._reading})
        self._writer.transport.abort()

    def _look_for_life(self) -> None:
        now = time.monotonic()
        if now - self._heard < SILENCE_SECONDS:
            self._asked = None
        elif self._asked is None:
            self._asked = now
            self._writer.write(resp.command(["PING"]))
        elif now - self._asked > self._timeout:
            raise ChannelError(f"Redis at {self._where} doesn't answer any more")

    async def _subscription(self) -> list[resp.Reply]:
        while True:
            replies = await self._next()
            for number, reply in enumerate(replies):
                if isinstance(reply, resp.Refused):
                    raise LogInError(
                        f"Redis at {self._where} refuses ({reply.text}): check CALLYARD_BIGBLUEBUTTON_REDIS_PASSWORD"
                    )
                if isinstance(reply, list) and reply[:1] == [b"subscribe"]:
                    return replies[number + 1 :]

    async def _read(self, replies: list[resp.Reply], on_message: OnMessage) -> None:
        while True:
            for reply in replies:
                if isinstance(reply, list) and len(reply) == 3 and reply[0] == b"message":
                    message = reply[2]
                    if isinstance(message, (bytes, resp.TooLarge)):
                        on_message(message)
            replies = await self._next()

    async def _next(self) -> list[resp.Reply]:
        try:
            data = await self._reader.read(READ_BYTES)
            if not data:
                raise ChannelError(f"Redis at {self._where} closed the connection")
            self._heard = time.monotonic()
            return self._replies.feed(data)
        except OSError as error:
            raise ChannelError(f"the connection to Redis at {self._where} broke: {error}") from None
        except resp.RespError as error:
            raise ChannelError(
                f"what listens at {self._where} isn't Redis ({error}): check CALLYARD_BIGBLUEBUTTON_REDIS_HOST"
                " and _PORT"
            ) from None


@asynccontextmanager
async def subscribed(settings: BigBlueButtonSettings, channel: str, on_message: OnMessage) -> AsyncIterator[Channel]:
    """A subscription; raises `ChannelError` for each way in which that fails.

    What ``on_message`` raises ends the subscription and is raised by `Channel.wait`.
    """
    where = f"{settings.redis_host}:{settings.redis_port}"
    try:
        reader, writer = await within(
            asyncio.open_connection(settings.redis_host, settings.redis_port, limit=READ_BYTES),
            settings.timeout_seconds,
        )
    except (asyncio.TimeoutError, OSError) as error:
        raise ChannelError(
            f"Redis can't be reached at {where} ({error or 'no answer'}): check that it runs, and"
            " CALLYARD_BIGBLUEBUTTON_REDIS_HOST and _PORT"
        ) from None
    made = Channel(where, reader, writer, settings.timeout_seconds)
    password = settings.redis_password
    try:
        await made.subscribe(channel, None if password is None else password.get_secret_value(), on_message)
        yield made
    finally:
        await made.close()
