"""What is set aside is bounded in number and size, and never holds up the source that said it."""

from __future__ import annotations

import asyncio

from fs_hooks.aside import DROPPED, MOST_WAITING, MOST_WAITING_BYTES, Aside
from tests.support.wait import until


def dropped() -> float:
    return float(DROPPED._value.get())


async def test_no_more_than_so_many_pieces_and_bytes_wait() -> None:
    before, aside = dropped(), Aside(None)
    for _ in range(MOST_WAITING + 3):
        aside.put("small", b"x")
    assert dropped() - before == 3
    before, aside = dropped(), Aside(None)
    half = bytes(MOST_WAITING_BYTES // 2)
    for _ in range(3):
        aside.put("large", half)
    assert dropped() - before == 1


async def test_there_is_room_again_once_pieces_were_delivered() -> None:
    before, aside = dropped(), Aside(None)
    running = asyncio.create_task(aside.run())
    for _ in range(4):
        aside.put("large", bytes(MOST_WAITING_BYTES))
        await until(lambda: aside._bytes == 0)
    running.cancel()
    await asyncio.wait({running})
    assert dropped() == before
