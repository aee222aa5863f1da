"""A TCP proxy on 127.0.0.1 that fails on demand, in ways that can be switched while connections run.

What the modes stand for: ``drop`` is a firewall that forgot the connection (bytes vanish, nobody is told; connections
that lost bytes are reset when the mode ends, because no TCP goes on after a gap); ``hold`` is a cut cable (nothing
arrives, and when it is mended TCP delivers all of it, late); ``delay`` is a far network; ``split`` is what TCP may
always do. Each direction keeps its order in every mode.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum

HOST = "127.0.0.1"
READ_BYTES = 64 * 1024
QUEUED_CHUNKS = 1000
SMALLEST, LARGEST = 1, 7
"""Bytes of a piece in the mode ``split``."""
SMALL_PIECES = 200
"""So many pieces of a chunk are that small; the rest of a large one comes in as many again."""
GAP_SECONDS = 0.001
"""Between some of the pieces, so that the reader meets them one by one."""


class Mode(str, Enum):
    """What happens to bytes."""

    PASS = "pass"
    DROP = "drop"
    HOLD = "hold"
    DELAY = "delay"
    SPLIT = "split"


@dataclass(frozen=True)
class State:
    """A mode with its parameters."""

    mode: Mode = Mode.PASS
    delay_seconds: float = 0.0
    refuse: bool = False
    """Reset new connections at once instead of taking them."""


class _Connection:
    """One client's connection, and ours to the target for it."""

    def __init__(self, client: asyncio.StreamWriter) -> None:
        self.writers = [client]
        self.lost_bytes = False
        self.tasks: list[asyncio.Task[None]] = []

    def reset(self) -> None:
        """RST to both sides."""
        for writer in self.writers:
            raw = writer.get_extra_info("socket")
            if raw is not None and raw.fileno() >= 0:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


class Proxy:
    """Forwards connections of one port to a target port; `running` makes one.

    ``target`` is asked at each new connection, so that it may still be unknown when the proxy begins to listen.
    """

    def __init__(self, target: Callable[[], int], seed: int = 0) -> None:
        self._target = target
        self._random = random.Random(seed)
        self._state = State()
        self._changed = asyncio.Event()
        self._connections: set[_Connection] = set()
        self._in_use = asyncio.Event()
        self._serving: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0
        self.accepted = 0

    @property
    def state(self) -> State:
        return self._state

    @property
    def connections(self) -> int:
        """Connections that are open now."""
        return len(self._connections)

    async def in_use(self) -> None:
        """Wait until there is a connection."""
        await self._in_use.wait()

    async def start(self) -> None:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._accept, HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Reset all connections and listen no more."""
        if self._server is not None:
            self._server.close()
        self.cut()
        for serving in self._serving:
            serving.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def switch(self, state: State) -> None:
        """From now on this happens to the bytes of all connections, those that exist included."""
        self._state = state
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        if state.mode is not Mode.DROP:
            for connection in [one for one in self._connections if one.lost_bytes]:
                connection.reset()

    def heal(self) -> None:
        """Let everything pass."""
        self.switch(State())

    def cut(self) -> int:
        """Reset all connections, on both sides; returns how many there were."""
        connections = list(self._connections)
        for connection in connections:
            connection.reset()
        return len(connections)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        connection = _Connection(writer)
        self._connections.add(connection)
        self._in_use.set()
        self.accepted += 1
        try:
            if not self._state.refuse:
                await self._serve(connection, reader, writer)
        except OSError:
            pass  # either side is gone: the other one hears of it below
        finally:
            connection.reset()
            for pump in connection.tasks:
                pump.cancel()
            await asyncio.gather(*connection.tasks, return_exceptions=True)
            self._connections.discard(connection)
            if not self._connections:
                self._in_use.clear()
            self._serving.discard(task)

    async def _serve(
        self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:  # fmt: skip
        # Nothing is known of the target while the network drops everything: the client talks to a black hole.
        while self._state.mode in {Mode.DROP, Mode.HOLD}:
            connection.lost_bytes |= self._state.mode is Mode.DROP
            await self._changed.wait()
        if connection.lost_bytes:
            return
        target_reader, target_writer = await asyncio.open_connection(HOST, self._target())
        connection.writers.append(target_writer)
        for one in connection.writers:
            one.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        directions = [(reader, target_writer), (target_reader, writer)]
        for source, sink in directions:
            chunks: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(QUEUED_CHUNKS)
            connection.tasks.append(asyncio.create_task(self._read(source, chunks)))
            connection.tasks.append(asyncio.create_task(self._write(connection, chunks, sink)))
        # Until both directions have ended, or one of them broke.
        await asyncio.gather(*connection.tasks)
        for one in connection.writers:
            one.close()  # in order: a reset would throw away what the kernel has not sent yet
            await one.wait_closed()

    async def _read(self, source: asyncio.StreamReader, chunks: asyncio.Queue[tuple[float, bytes]]) -> None:
        loop = asyncio.get_running_loop()
        while data := await source.read(READ_BYTES):
            await chunks.put((loop.time(), data))
        await chunks.put((loop.time(), b""))

    async def _write(
        self, connection: _Connection, chunks: asyncio.Queue[tuple[float, bytes]], sink: asyncio.StreamWriter
    ) -> None:  # fmt: skip
        while True:
            arrived, data = await chunks.get()
            await self._due(arrived)
            if self._state.mode is Mode.DROP:
                connection.lost_bytes = True
                if not data:  # the end of a connection vanishes as well
                    await self._changed.wait()
                    raise ConnectionResetError
                continue
            if not data:
                sink.write_eof()
                return
            if self._state.mode is Mode.SPLIT:
                await self._tear(data, sink)
            else:
                sink.write(data)
            await sink.drain()

    async def _due(self, arrived: float) -> None:
        """Wait as long as the present mode, whichever it is by then, keeps what arrived at this time."""
        loop = asyncio.get_running_loop()
        while True:
            state, changed = self._state, self._changed
            if state.mode is Mode.HOLD:
                timeout = None
            elif state.mode is Mode.DELAY and (left := arrived + state.delay_seconds - loop.time()) > 0:
                timeout = left
            else:
                return
            try:
                await asyncio.wait_for(changed.wait(), timeout)
            except asyncio.TimeoutError:
                return

    async def _tear(self, data: bytes, sink: asyncio.StreamWriter) -> None:
        start = number = 0
        while start < len(data):
            if number < SMALL_PIECES:
                size = self._random.randint(SMALLEST, LARGEST)
            else:
                size = max(LARGEST, len(data) // SMALL_PIECES)
            sink.write(data[start : start + size])
            await sink.drain()
            start, number = start + size, number + 1
            await asyncio.sleep(GAP_SECONDS if number % 8 == 1 else 0)


@asynccontextmanager
async def running(target: Callable[[], int], seed: int = 0) -> AsyncIterator[Proxy]:
    """A proxy that listens on a free port until the block ends."""
    proxy = Proxy(target, seed)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
