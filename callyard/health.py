"""What a worker answers to its supervisor and to Prometheus: ``/healthz``, ``/readyz`` and ``/metrics`` over HTTP.

* ``/healthz``: the event loop runs. Who answers lives; whatever is fatal ends the process.
* ``/readyz``: 200 where all that `Health.require` names holds, else 503 with what is missing, a line each. Losing and
  regaining a connection is no reason to end a worker, so this must never be asked as a liveness probe.
* ``/metrics``: Prometheus's text format; docs/metrics.md lists what is there.

It is served by the worker's own loop, so that a loop that hangs answers nothing. It reads no body, keeps no connection
and serves `MAX_CONNECTIONS` at a time: who can reach the port can't make the worker hold much. Nothing secret is told.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import prometheus_client
from prometheus_client import Gauge, Info

from callyard import __version__, tasks
from callyard.errors import CommandError
from callyard.settings import HealthSettings

READ_SECONDS = 5.0
MAX_HEAD_BYTES = 8192
MAX_CONNECTIONS = 32
TEXT = "text/plain; charset=utf-8"
METRICS = "text/plain; version=0.0.4; charset=utf-8"

# A counter's time of birth would be another series for each; restarts show in process_start_time_seconds.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]

BUILD = Info("callyard_build", "The program's version.")
READY = Gauge("callyard_ready", "1 where /readyz says that the worker is ready, 0 where something is missing.")


class Health:
    """What a worker's probes are told. ``stop`` is set when the worker is to end: from then on it isn't ready."""

    def __init__(self, stop: asyncio.Event) -> None:
        self._stop = stop
        self._conditions: dict[str, Callable[[], bool]] = {}

    def require(self, what: str, holds: Callable[[], bool]) -> None:
        """The worker is ready only while ``holds()``; ``what`` names that for people. ``holds`` must not block."""
        self._conditions[what] = holds

    def missing(self) -> list[str]:
        """What keeps the worker from being ready; empty where it is."""
        if self._stop.is_set():
            return ["the worker is stopping"]
        if not self._conditions:
            return ["the worker is starting"]
        return [what for what, holds in self._conditions.items() if not holds()]


def run(settings: HealthSettings, main: Callable[[asyncio.Event, Health], Coroutine[Any, Any, None]]) -> None:
    """Run a worker as `callyard.tasks.run` does, its probes served from before it begins until after it has ended."""

    async def served(stop: asyncio.Event) -> None:
        health = Health(stop)
        async with serving(settings, health):
            await main(stop, health)

    tasks.run(served, settings.grace_seconds)


@asynccontextmanager
async def serving(settings: HealthSettings, health: Health) -> AsyncIterator[None]:
    """Answer until the block ends; with port 0 nothing listens. Raises `CommandError` where the port can't be had."""
    BUILD.info({"version": __version__})
    READY.set_function(lambda: not health.missing())
    if not settings.port:
        yield
        return
    server = Server(health)
    try:
        listening = await asyncio.start_server(server.serve, settings.host, settings.port, limit=MAX_HEAD_BYTES)
    except OSError as error:
        raise CommandError(
            f"cannot listen on {settings.host}:{settings.port} ({os.strerror(error.errno or 0)}): check"
            f" {HealthSettings.variable('host')} and {HealthSettings.variable('port')}; each worker needs a port of its"
            " own"
        ) from None
    try:
        yield
    finally:
        listening.close()
        await server.close()


class Answer(NamedTuple):
    """A response: its status line's words, its content type, its body."""

    status: str
    content_type: str
    body: bytes


def answer(head: bytes, health: Health) -> Answer:
    """What is answered to a request, of which ``head`` is all up to the empty line. Takes anything."""
    words = head.split(b"\r\n", 1)[0].split(b" ")
    if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
        return Answer("400 Bad Request", TEXT, b"this is no HTTP request\n")
    method, path = words[0], words[1].partition(b"?")[0]
    if path not in {b"/healthz", b"/readyz", b"/metrics"}:
        return Answer("404 Not Found", TEXT, b"there are /healthz, /readyz and /metrics\n")
    if method not in {b"GET", b"HEAD"}:
        return Answer("405 Method Not Allowed", TEXT, b"GET and HEAD only\n")
    if path == b"/metrics":
        return Answer("200 OK", METRICS, prometheus_client.generate_latest())
    missing = health.missing() if path == b"/readyz" else []
    if missing:
        lines = "".join(f"missing: {what}\n" for what in missing)
        return Answer("503 Service Unavailable", TEXT, lines.encode())
    return Answer("200 OK", TEXT, b"ready\n" if path == b"/readyz" else b"alive\n")


class Server:
    """Answers one request on each connection."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self._connections: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: read a request's head, answer, close."""
        task = asyncio.current_task()
        if task is None or len(self._connections) >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self._connections.add(task)
        try:
            await asyncio.wait_for(self._one(reader, writer), READ_SECONDS)
        except (asyncio.TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            writer.transport.abort()  # whoever asked so gets no answer, and nothing of ours depends on one
        finally:
            writer.close()
            self._connections.discard(task)

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        status, content_type, body = answer(head, self._health)
        lines = (
            f"HTTP/1.1 {status}", f"Content-Type: {content_type}", f"Content-Length: {len(body)}",
            "Cache-Control: no-store", "Connection: close", "", "",
        )  # fmt: skip
        writer.write("\r\n".join(lines).encode() + (b"" if head.startswith(b"HEAD ") else body))
        await writer.drain()

    async def close(self) -> None:
        """End the connections that are still open."""
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
