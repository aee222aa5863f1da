"""A child that speaks to its parent as to systemd: ready, how it goes, and what happens when it stands still."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from callyard.processes import Child
from callyard.supervised import Told
from callyard.up import _until_it_ends
from tests.support.wait import until

WORKER = """
import asyncio
from callyard.notify import Notifier
async def main():
    notifier = Notifier()
    notifier.ready("serves")
    await notifier.watch()
asyncio.run(main())
"""


@asynccontextmanager
async def started(directory: Path, seconds: float) -> AsyncIterator[tuple[Child, Told, list[str]]]:
    changes: list[str] = []
    told = Told(directory / "socket", lambda: changes.append(told.status), seconds)
    # As under systemd: the parent's own watchdog isn't the child's.
    environment = {"WATCHDOG_PID": "1", **told.environment}
    child = Child("worker", [sys.executable, "-c", WORKER], environment=environment, log=directory / "log")
    receiving = asyncio.create_task(told.receive())
    child.start()
    try:
        yield child, told, changes
    finally:
        await child.kill()
        receiving.cancel()
        told.close()


async def test_a_child_says_that_it_is_ready_and_a_new_one_says_it_anew(tmp_path: Path) -> None:
    async with started(tmp_path, 60) as (child, told, changes):
        assert (told.ready, told.status) == (False, "starting")
        await until(lambda: told.ready)
        assert changes == ["serves"]
        await child.kill()
        told.begin()
        assert (told.ready, told.status) == (False, "starting")
        child.start()
        await until(lambda: told.ready)


async def test_a_child_that_stands_still_is_ended_and_one_that_speaks_is_not(tmp_path: Path) -> None:
    async with started(tmp_path, 3) as (child, told, _):
        await until(lambda: told.ready)
        watching = asyncio.create_task(_until_it_ends(child, told))
        assert await asyncio.wait([watching], timeout=6) == (set(), {watching})
        child.send_signal(signal.SIGSTOP)
        await asyncio.wait_for(watching, 15)
        assert child.exit_status == -signal.SIGKILL
