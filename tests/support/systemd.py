"""Systemd's end of the notification socket, as sd_notify(3) describes it."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path


class Systemd:
    """Receives what a service says: each message a dictionary of its lines."""

    def __init__(self, listening: socket.socket, address: str) -> None:
        self._listening = listening
        self.environment = {"NOTIFY_SOCKET": address}
        self.messages: list[dict[str, str]] = []

    async def receive(self, timeout: float = 20) -> dict[str, str]:
        """The next message."""
        data = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self._listening, 4096), timeout)
        message = dict(line.split("=", 1) for line in data.decode().split("\n"))
        self.messages.append(message)
        return message

    async def until(self, state: str, timeout: float = 20) -> list[dict[str, str]]:
        """The messages up to the one that says ``state`` (``READY``, …), that one the last."""
        first = len(self.messages)
        while state not in await self.receive(timeout):
            pass
        return self.messages[first:]

    async def silent(self, seconds: float) -> bool:
        """Whether it falls silent for so long, after what was sent before. One that never does is a test's time-out."""
        while True:
            try:
                await self.receive(seconds)
            except asyncio.TimeoutError:
                return True


@asynccontextmanager
async def systemd(directory: Path | None) -> AsyncIterator[Systemd]:
    """Listens at a path in this directory; without one at an abstract name."""
    address = f"@callyard-test-{os.getpid()}" if directory is None else str(directory / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(address.replace("@", "\0", 1) if directory is None else address)
        listening.setblocking(False)
        yield Systemd(listening, address)
