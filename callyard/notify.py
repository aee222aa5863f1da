"""Tells systemd how a worker is, as sd_notify(3) describes it: one datagram for each message, to ``$NOTIFY_SOCKET``.

Where systemd doesn't listen, nothing is sent. A message must never hold up the worker: what systemd can't take at once
is dropped, and the next one says the same.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import structlog

log = structlog.get_logger(__name__)

WATCHDOG_SHARE = 3
"""So many times within systemd's limit a healthy worker says so: two may be lost."""
LOOK_SECONDS = 0.25


class Notifier:
    """Speaks to the systemd that started this process, if one did.

    ``environment`` is that of the process: ``NOTIFY_SOCKET`` (a path, or ``@`` and an abstract name), ``WATCHDOG_USEC``
    and ``WATCHDOG_PID``.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        env = os.environ if environment is None else environment
        name = env.get("NOTIFY_SOCKET", "")
        self._address = f"\0{name[1:]}" if name.startswith("@") else name
        self._socket: socket.socket | None = None
        self.watchdog_seconds = _watchdog_seconds(env) if name else None
        """After so many seconds without `alive` systemd kills this process; None: it doesn't watch."""

    def ready(self, status: str) -> None:
        """The worker does what it is for; ``status`` is one line for ``systemctl status``."""
        self._send("READY=1", status)

    def status(self, status: str) -> None:
        """How it goes, in one line."""
        self._send("", status)

    def alive(self) -> None:
        """The watchdog may wait anew."""
        self._send("WATCHDOG=1", "")

    def stopping(self) -> None:
        """The worker is ending."""
        self._send("STOPPING=1", "")

    def _send(self, state: str, status: str) -> None:
        if not self._address:
            return
        lines = [state, f"STATUS={' '.join(status.splitlines())}" if status else ""]
        message = "\n".join(line for line in lines if line).encode()
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
                self._socket.setblocking(False)
            self._socket.sendto(message, self._address)
        except OSError as error:
            log.warning("systemd was not told", message=message.decode(), error=str(error))

    async def follow(self, missing: Callable[[], Sequence[str]], well: Callable[[], str]) -> None:
        """Tell for ever how a worker is: once that it is ready, and each change of what is missing.

        ``missing`` names what keeps it from being ready, as `callyard.health.Health.missing` does; ``well`` is its
        status where nothing does. Losing and regaining a connection leaves it ready for systemd.
        """
        ready, told = False, ""
        while True:
            wanting = missing()
            status = f"missing: {'; '.join(wanting)}" if wanting else well()
            if not ready and not wanting:
                ready = True
                self.ready(status)
            elif status != told:
                self.status(status)
            told = status
            await asyncio.sleep(LOOK_SECONDS)

    def tasks(
        self, missing: Callable[[], Sequence[str]], well: Callable[[], str]
    ) -> dict[str, Coroutine[Any, Any, None]]:
        """The tasks, by name, of a worker that tells all of it: see `follow` and `watch`."""
        watched = {"watchdog": self.watch()} if self.watchdog_seconds is not None else {}
        return {"systemd": self.follow(missing, well), **watched}

    async def watch(self, healthy: Callable[[], bool] = lambda: True) -> None:
        """Feed the watchdog for ever, as long as the event loop runs and ``healthy()``."""
        if self.watchdog_seconds is None:
            raise ValueError("systemd doesn't watch this process")
        while True:
            if healthy():
                self.alive()
            await asyncio.sleep(self.watchdog_seconds / WATCHDOG_SHARE)


def _watchdog_seconds(env: Mapping[str, str]) -> float | None:
    # WATCHDOG_PID names whom it is meant for: a child must not take its parent's watchdog for its own.
    if (env.get("WATCHDOG_PID") or str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = env.get("WATCHDOG_USEC", "")
    return int(microseconds) / 1_000_000 if microseconds.isdecimal() and int(microseconds) else None
