"""The chaos proxy does to bytes what its modes say, also to connections that exist when the mode is switched."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import pytest

from tests.chaos import proxy
from tests.chaos.proxy import Mode, Proxy, State
from tests.support.wait import until

TEXT = ("Grüße 👋\r\n" * 40).encode()


class Far(NamedTuple):
    """The target's side of a connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class Bench(NamedTuple):
    """A proxy, what it forwards to, and how to connect."""

    proxy: Proxy
    accepted: asyncio.Queue[Far]

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, Far]:
        near = await asyncio.open_connection("127.0.0.1", self.proxy.port)
        return *near, await asyncio.wait_for(self.accepted.get(), 5)


@asynccontextmanager
async def forwarding() -> AsyncIterator[Bench]:
    accepted: asyncio.Queue[Far] = asyncio.Queue()
    server = await asyncio.start_server(lambda r, w: accepted.put(Far(r, w)), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with proxy.running(lambda: port, seed=1) as made:
        yield Bench(made, accepted)
    server.close()


async def read(reader: asyncio.StreamReader, count: int) -> bytes:
    return await asyncio.wait_for(reader.readexactly(count), 5)


async def nothing(reader: asyncio.StreamReader, seconds: float = 0.2) -> None:
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(reader.read(1), seconds)


async def test_what_passes_arrives_both_ways_and_so_does_the_end() -> None:
    async with forwarding() as bench:
        reader, writer, far = await bench.connect()
        writer.write(TEXT)
        assert await read(far.reader, len(TEXT)) == TEXT
        far.writer.write(b"answer")
        assert await read(reader, 6) == b"answer"
        writer.write_eof()
        assert await asyncio.wait_for(far.reader.read(), 5) == b""
        far.writer.write(b"last words")
        far.writer.close()
        assert await asyncio.wait_for(reader.read(), 5) == b"last words"
        await until(lambda: bench.proxy.connections == 0)


async def test_cut_resets_both_sides() -> None:
    async with forwarding() as bench:
        reader, _, far = await bench.connect()
        assert bench.proxy.cut() == 1
        for side in (reader, far.reader):
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(side.read(), 5)


@pytest.mark.parametrize("towards", ["target", "client"])
async def test_what_is_dropped_never_arrives_and_the_connection_is_reset_when_it_heals(towards: str) -> None:
    async with forwarding() as bench:
        reader, writer, far = await bench.connect()
        sender, receiver = (writer, far.reader) if towards == "target" else (far.writer, reader)
        bench.proxy.switch(State(Mode.DROP))
        sender.write(b"gone")
        await nothing(receiver)
        assert bench.proxy.connections == 1, "nobody was told"
        bench.proxy.heal()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(receiver.read(), 5)


async def test_a_connection_that_lost_nothing_survives_the_dropping() -> None:
    async with forwarding() as bench:
        _, writer, far = await bench.connect()
        bench.proxy.switch(State(Mode.DROP))
        await nothing(far.reader)
        bench.proxy.heal()
        writer.write(b"later")
        assert await read(far.reader, 5) == b"later"


@pytest.mark.parametrize("refuse", [True, False])
async def test_new_connections_while_bytes_are_dropped_are_refused_or_swallowed(refuse: bool) -> None:
    async with forwarding() as bench:
        bench.proxy.switch(State(Mode.DROP, refuse=refuse))
        reader, writer = await asyncio.open_connection("127.0.0.1", bench.proxy.port)
        if not refuse:
            writer.write(b"hello")
            await nothing(reader)
            bench.proxy.heal()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), 5)
        assert bench.accepted.empty(), "the target was never reached"


async def test_what_is_held_arrives_late_and_whole() -> None:
    async with forwarding() as bench:
        _, writer, far = await bench.connect()
        bench.proxy.switch(State(Mode.HOLD))
        writer.write(TEXT)
        await nothing(far.reader)
        bench.proxy.heal()
        assert await read(far.reader, len(TEXT)) == TEXT


async def test_delay_delays_each_chunk_and_keeps_the_order_and_the_rate() -> None:
    async with forwarding() as bench:
        _, writer, far = await bench.connect()
        bench.proxy.switch(State(Mode.DELAY, delay_seconds=0.3))
        began = time.monotonic()
        for number in range(10):
            writer.write(b"%d" % number)
            await asyncio.sleep(0.01)  # so that the proxy reads them one by one
        assert await read(far.reader, 10) == b"0123456789"
        assert 0.3 <= time.monotonic() - began < 2, "not ten times the delay"


async def test_split_tears_into_a_few_bytes_also_within_characters_and_line_ends() -> None:
    async with forwarding() as bench:
        _, writer, far = await bench.connect()
        bench.proxy.switch(State(Mode.SPLIT))
        writer.write(TEXT)
        pieces: list[bytes] = []
        while sum(map(len, pieces)) < len(TEXT):
            pieces.append(await asyncio.wait_for(far.reader.read(65536), 5))
        assert b"".join(pieces) == TEXT
        assert len(pieces) > 10
        assert any(piece.endswith(b"\r") for piece in pieces)
        assert any(piece[0] & 0xC0 == 0x80 for piece in pieces), "none begins within a character"


async def test_a_target_that_is_away_ends_the_connection() -> None:
    async with forwarding() as bench:
        reader, _, _ = await bench.connect()
    async with proxy.running(lambda: 1) as lonely:
        reader, _ = await asyncio.open_connection("127.0.0.1", lonely.port)
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), 5)
