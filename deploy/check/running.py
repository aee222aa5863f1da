"""Containers that run, and what is measured of each: how soon it is ready, its memory, how fast it ends on SIGTERM."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from callyard.parts.ports import LOOPBACK
from deploy.check.containers import Podman
from deploy.check.manifests import Document
from deploy.check.pods import Adapted
from deploy.check.report import CheckError

READY_SECONDS = 120.0


class Containers:
    """What podman runs for this check, and what is measured of each."""

    def __init__(self, podman: Podman) -> None:
        self._podman = podman

    async def play(self, adapted: Adapted) -> None:
        """Start a pod: what must end first, then the rest."""
        for first in adapted.first:
            name = f"{first['metadata']['name']}-{first['spec']['containers'][0]['name']}"
            await self._play(first)
            status = await self._podman.must("wait", name)
            if status != "0":
                raise CheckError(f"{name} ended with status {status}:\n{await self.log(name)}")
        await self._play(adapted.pod)

    async def _play(self, pod: Document) -> None:
        await self._podman.must("kube", "play", "--network=host", "-", given=json.dumps(pod))

    async def log(self, name: str, lines: int = 20) -> str:
        """The end of what it said."""
        done = await self._podman.run("logs", f"--tail={lines}", name)
        return (done.out + done.err).strip()

    async def state(self, name: str) -> Mapping[str, Any]:
        state: Mapping[str, Any] = (await self._podman.inspect(name))["State"]
        return state

    async def execute(self, name: str, *argv: str) -> int:
        """Run a command in it; returns its exit status."""
        return (await self._podman.run("exec", name, *argv)).status

    async def ready(self, name: str, answers: Callable[[], Awaitable[bool]]) -> str:
        """Wait until it is ready; returns how long that took since its start, and its memory. Raises `CheckError`."""
        began = time.monotonic()
        while not await answers():
            state = await self.state(name)
            if not state["Running"] or time.monotonic() - began > READY_SECONDS:
                how = f"ended with status {state['ExitCode']}" if not state["Running"] else "is not ready"
                raise CheckError(f"{name} {how} after {time.monotonic() - began:.0f} s:\n{await self.log(name)}")
            await asyncio.sleep(0.02)
        now = time.time()
        state = await self.state(name)
        return f"ready {now - _seconds(state['StartedAt']):.1f} s after its start; {await self.memory(name)}"

    async def memory(self, name: str) -> str:
        """The memory of its first process: now, and at most."""
        pid = (await self.state(name))["Pid"]
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
        fields = dict(line.split(":", 1) for line in status.splitlines())
        now, most = (int(fields[field].split()[0]) // 1024 for field in ("VmRSS", "VmHWM"))
        return f"{now} MB (at most {most})"

    async def stop(self, name: str, grace: int) -> str:
        """SIGTERM, as the kubelet sends it; returns how long it took. Raises `CheckError` where it doesn't end well."""
        began = time.monotonic()
        await self._podman.must("stop", f"--time={grace}", name, timeout=grace + 60)
        took = time.monotonic() - began
        state = await self.state(name)
        if state["ExitCode"] != 0 or took >= grace:
            raise CheckError(
                f"{name} took {took:.1f} s of {grace}, status {state['ExitCode']}:\n{await self.log(name)}"
            )
        return f"{took:.1f} s of {grace}, status 0"


def _seconds(stamp: str) -> float:
    # Python before 3.11 reads neither nanoseconds nor Z.
    whole, _, rest = stamp.partition(".")
    fraction = rest.rstrip("Z").partition("+")[0]
    return datetime.fromisoformat(f"{whole.rstrip('Z')}+00:00").timestamp() + float(f"0.{fraction or 0}")


async def get(port: int, path: str) -> tuple[int, str]:
    """Status and body of what a worker serves beside its work; status 0 where it doesn't answer."""
    try:
        reader, writer = await asyncio.open_connection(LOOPBACK, port)
    except OSError:
        return 0, ""
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {LOOPBACK}\r\n\r\n".encode())
        head, _, body = (await asyncio.wait_for(reader.read(), 5)).decode().partition("\r\n\r\n")
        return int(head.split(" ")[1]) if head else 0, body
    except (OSError, asyncio.TimeoutError):
        return 0, ""
    finally:
        writer.close()
