"""A real Redis on a free port of 127.0.0.1 that keeps nothing: BigBlueButton's channel, for tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from callyard.parts import confine, prepare
from callyard.parts.ports import LOOPBACK
from callyard.processes import Child, free_port


class Redis:
    """A Redis that may be stopped and started again on the same port. Made by `running`."""

    def __init__(self, directory: Path, password: str | None = None) -> None:
        self.port = free_port(LOOPBACK)
        program, root = prepare.redis_server()
        words = ["--port", str(self.port), "--bind", LOOPBACK, "--save", "", "--appendonly", "no", "--dir", "/tmp"]  # noqa: S108 - nothing is written
        if password:
            words += ["--requirepass", password]
        self._child = Child(
            "redis-server", confine.command([program, *words], root=root), log=directory / "redis.log"
        )  # fmt: skip

    @property
    def pid(self) -> int:
        """Process id of the present or last run."""
        return self._child.pid

    async def start(self) -> None:
        """Start it, and wait until it takes connections."""
        self._child.start()
        await self._child.until(self._listens, 20, "listening")

    async def stop(self) -> None:
        """End it."""
        await self._child.stop()

    async def _listens(self) -> bool:
        try:
            _, writer = await asyncio.open_connection(LOOPBACK, self.port)
        except OSError:
            return False
        writer.close()
        return True


@asynccontextmanager
async def running(directory: Path, password: str | None = None) -> AsyncIterator[Redis]:
    """A Redis that listens; ended at the end."""
    made = Redis(directory, password)
    try:
        await made.start()
        yield made
    finally:
        await made.stop()
