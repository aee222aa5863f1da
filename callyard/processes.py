"""Child processes: started without a shell, watched, ended; none outlives the process that started it.

A child gets its own log file or inherits standard error. Readiness is awaited, never guessed by sleeping: a condition
(`Child.until`), a line of its log (`Child.line`), or the event ``ready`` that each worker logs (`Child.ready`). A child
that ends while somebody waits for it is an error that shows the last lines of its log.

Where the parent is killed and cannot clean up, Linux ends the child: ``setpriv --pdeathsig`` (util-linux) asks for that
and then becomes the child by exec, so the process id stays. That is done instead of a ``preexec_fn``, which would run
Python between fork and exec and can deadlock. The signal comes when the *thread* that started the child ends, so start
children from the main thread. Where there is no setpriv, a killed parent leaves its children running.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import orjson

from callyard.errors import CommandError

POLL_SECONDS = 0.02
TAIL_BYTES = 65_536
TAIL_COLUMNS = 300
# No session of its own where that can be helped: Linux shares the processors out among sessions (sched_autogroup), and
# a busy one beside it was seen to starve such a child for ten seconds and more.
_OWN_GROUP: Mapping[str, Any] = {"process_group": 0} if sys.version_info >= (3, 11) else {"start_new_session": True}


class ProcessError(CommandError):
    """A child process did not start, did not become ready, or ended by itself. The text holds its last log lines."""


class Child:
    """One child process; may be started again after it ended.

    ``log``: file that standard output and error are appended to; None: both go to this process's standard error.
    ``own_group``: put it into a process group of its own, so that a Ctrl-C at the terminal doesn't reach it.
    ``noise``: pattern of log lines that say nothing about why it ended.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        environment: Mapping[str, str] | None = None,
        log: Path | None = None,
        directory: Path | None = None,
        own_group: bool = False,
        noise: str | None = None,
    ) -> None:
        self.name = name
        self.command = [str(word) for word in command]
        self.log = log
        self._environment = dict(environment or {})
        self._directory = directory
        self._own_group = own_group
        self._noise = re.compile(noise) if noise else None
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    def start(self, pass_fds: Sequence[int] = ()) -> None:
        """Start it; returns at once. Raises `ProcessError` when the program cannot be run.

        ``pass_fds``: open files that it inherits, for example one whose lock it is to hold as long as it lives.
        """
        if self.running:
            raise RuntimeError(f"{self.name} runs already")
        try:
            if self.log is None:
                self._process = self._spawn(None, pass_fds)
                return
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with self.log.open("ab") as file:
                self._log_start = file.tell()
                self._process = self._spawn(file, pass_fds)
        except OSError as error:
            raise ProcessError(f"{self.name} cannot be started: {error}") from None

    def _spawn(self, log: IO[bytes] | None, pass_fds: Sequence[int]) -> subprocess.Popen[bytes]:
        # Looked up here: behind setpriv, a program that doesn't exist would only be an exit status.
        program = shutil.which(self.command[0])
        if program is None:
            raise ProcessError(f"{self.name} cannot be started: there is no program {self.command[0]!r}")
        setpriv = shutil.which("setpriv")
        guard = [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []
        out = sys.stderr if log is None else log
        return subprocess.Popen(  # noqa: S603 - commands are lists of our own making, never a shell's
            [*guard, program, *self.command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={**os.environ, **self._environment},
            cwd=self._directory,
            **(_OWN_GROUP if self._own_group else {}),
            pass_fds=tuple(pass_fds),
        )

    @property
    def pid(self) -> int:
        """Process id of the present or last run."""
        if self._process is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_status(self) -> int | None:
        """How the last run ended: the exit status, or minus the signal's number; None while it runs."""
        return None if self._process is None else self._process.poll()

    async def wait(self) -> int:
        """Wait until it has ended; returns its exit status, or minus the signal's number."""
        while (status := self.exit_status) is None:
            if self._process is None:
                raise RuntimeError(f"{self.name} was not started")
            await asyncio.sleep(POLL_SECONDS)
        return status

    async def until(self, condition: Callable[[], Awaitable[bool]], timeout: float, what: str = "ready") -> None:
        """Wait until the condition holds. Raises `ProcessError` when the child ends first, or after ``timeout`` s."""
        deadline = time.monotonic() + timeout
        while True:
            # Asked before the condition: who fulfils it and ends right then has fulfilled it.
            running = self.running
            if await condition():
                return
            if not running:
                raise ProcessError(f"{self.name} {self.ended()} before it was {what}{self.tail()}")
            if time.monotonic() > deadline:
                raise ProcessError(f"{self.name} was not {what} within {timeout:g} s{self.tail()}")
            await asyncio.sleep(POLL_SECONDS)

    async def line(self, matches: Callable[[str], bool], timeout: float, what: str = "ready") -> str:
        """Wait for a line of this run's log; returns the first one that matches. Raises as `until` does."""
        found: list[str] = []

        async def seen() -> bool:
            found.extend(line for line in self.lines() if matches(line))
            return bool(found)

        await self.until(seen, timeout, what)
        return found[0]

    async def ready(self, timeout: float) -> dict[str, Any]:
        """Wait for a worker's event ``ready`` (one JSON object a line); returns its fields. Raises as `until` does."""
        return _event(await self.line(lambda line: _event(line).get("event") == "ready", timeout))

    def lines(self) -> list[str]:
        """The complete lines of this run's log so far."""
        if self.log is None:
            raise RuntimeError(f"{self.name} has no log of its own")
        with self.log.open("rb") as file:
            file.seek(self._log_start)
            content = file.read()
        return content[: content.rfind(b"\n") + 1].decode(errors="replace").splitlines()

    def tail(self, count: int = 15) -> str:
        """The last lines of its log, indented and led by a line break and the file's name; empty without a log."""
        if self.log is None or not self.log.exists():
            return ""
        with self.log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self._log_start, size - TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
        if self._noise is not None:
            lines = [line for line in lines if not self._noise.search(line)] or lines
        lines = [line if len(line) <= TAIL_COLUMNS else f"{line[:TAIL_COLUMNS]}…" for line in lines[-count:]]
        return f"; the end of {self.log}:\n" + "\n".join(f"    {line}" for line in lines)

    def ended(self) -> str:
        """How it ended, in words."""
        status = self.exit_status
        if status is None:
            return "runs"
        return f"ended with status {status}" if status >= 0 else f"was ended by {signal.Signals(-status).name}"

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal; nothing happens when it has ended already."""
        if self._process is not None:
            self._process.send_signal(number)

    async def stop(self, grace: float = 10) -> int | None:
        """End it by SIGTERM, by SIGKILL after ``grace`` seconds; returns how it ended, None if it was never started."""
        if self._process is None:
            return None
        self.send_signal(signal.SIGTERM)
        try:
            return await asyncio.wait_for(self.wait(), grace)
        except asyncio.TimeoutError:
            return await self.kill()

    async def kill(self) -> int:
        """End it by SIGKILL and wait for that."""
        self.send_signal(signal.SIGKILL)
        return await self.wait()


def _event(line: str) -> dict[str, Any]:
    if not line.startswith("{"):
        return {}
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError:
        return {}
    return fields if isinstance(fields, dict) else {}


def worker(
    command: str, *arguments: str, environment: Mapping[str, str] | None = None, log: Path | None = None
) -> Child:  # fmt: skip
    """One of Callyard's own commands as a child; one with a log file logs JSON there, so that `Child.ready` works."""
    settings = dict(environment or {})
    if log is not None:
        settings["CALLYARD_LOG_FORMAT"] = "json"
    return Child(command, [sys.executable, "-m", "callyard.main", command, *arguments], environment=settings, log=log)


def free_port(host: str = "127.0.0.1", kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """A port that was free a moment ago. Whoever binds it must still be ready to find it taken."""
    with socket.socket(socket.AF_INET, kind) as made:
        made.bind((host, 0))
        return int(made.getsockname()[1])
