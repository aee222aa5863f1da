"""A child process that tells its parent how it is, as it would tell systemd (`callyard.notify`).

``callyard up`` stands in for systemd with its workers: it learns when each is ready, says so, and ends one that stands
still. A worker doesn't know the difference.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from pathlib import Path

WATCHDOG_SECONDS = 60.0
"""A child that says nothing for so long stands still. It speaks each third of that."""
LOOK_SECONDS = 1.0
MAX_BYTES = 4096


class Told:
    """What one child has said since it was started last. ``path``: of a socket that is made here."""

    def __init__(self, path: Path, changed: Callable[[], None], watchdog_seconds: float = WATCHDOG_SECONDS) -> None:
        self._changed = changed
        self._seconds = watchdog_seconds
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.bind(str(path))
        self._socket.setblocking(False)
        self.environment = {
            "NOTIFY_SOCKET": str(path),
            "WATCHDOG_USEC": str(int(watchdog_seconds * 1_000_000)),
            "WATCHDOG_PID": "",  # what systemd told the parent isn't meant for it
        }
        self.begin()

    def begin(self) -> None:
        """The child is being started: nothing that one before it said counts."""
        self.ready = False
        self.status = "starting"
        self._spoke = time.monotonic()

    async def receive(self) -> None:
        """Take in for ever what the child says."""
        loop = asyncio.get_running_loop()
        while True:
            message = (await loop.sock_recv(self._socket, MAX_BYTES)).decode(errors="replace")
            self._spoke = time.monotonic()
            said = dict(line.split("=", 1) for line in message.split("\n") if "=" in line)
            before = (self.ready, self.status)
            self.ready = self.ready or "READY" in said
            self.status = said.get("STATUS", self.status)
            if (self.ready, self.status) != before:
                self._changed()

    async def stands_still(self) -> None:
        """Return when the child has said nothing for too long."""
        late = 0
        while late < 2:  # one that was stopped with its parent has a moment to speak
            await asyncio.sleep(LOOK_SECONDS)
            late = late + 1 if time.monotonic() - self._spoke > self._seconds else 0

    def close(self) -> None:
        """Nothing more is taken in."""
        self._socket.close()
