"""Runs a private Asterisk: rendered configuration, directories and ports of its own, nothing left behind.

For demo, tests and bench; several may run at the same time on one machine. It is the real thing (see `prepare`), with
the configuration that ``callyard render asterisk`` writes. It never touches an Asterisk that the machine runs itself:
no shared directory, socket or port.

    async with asterisk.running(directory, lot_size=2) as gateway:
        await gateway.cli("core show channels")
"""

from __future__ import annotations

import asyncio
import importlib
import os
import secrets
import signal
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from callyard import asterisk_console
from callyard.parts import confine
from callyard.parts.ports import LOOPBACK, free_sip_port
from callyard.parts.prepare import INSTANCE, Parts, found
from callyard.processes import Child, free_port
from callyard.settings import AmiSettings, AsteriskSettings, SipSettings

START_SECONDS = 30.0
DIRECTORIES = ("etc", "run", "log", "spool", "lib", "lib/cache", "tmp")


class Gateway:
    """A running Asterisk. ``settings`` and ``ami`` are what it was rendered from."""

    def __init__(
        self, parts: Parts, directory: Path, settings: AsteriskSettings, ami: AmiSettings, changes: Mapping[str, str],
        sip: SipSettings | None = None,
    ) -> None:  # fmt: skip
        self.directory = directory.absolute()
        self.settings = settings
        self.ami = ami
        self.sip = sip or SipSettings()
        self.parts = parts
        self._changes = changes
        inside = INSTANCE if parts.asterisk_root else str(self.directory)
        self._child = Child(
            "asterisk",
            confine.command(
                [parts.asterisk, "-f", "-C", f"{inside}/etc/asterisk.conf"],
                root=parts.asterisk_root,
                binds=_binds(parts, self.directory),
            ),
            log=self.directory / "log" / "console.log",
        )

    @property
    def sip_host(self) -> str:
        return self.settings.sip_host

    @property
    def sip_port(self) -> int:
        return self.settings.sip_port

    @property
    def pid(self) -> int:
        return self._child.pid

    def log(self) -> str:
        """What it has logged so far: notices, warnings and errors."""
        path = self.directory / "log" / "messages.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    async def start(self) -> None:
        """Start it and wait until it is fully booted. Raises `processes.ProcessError` with its log where that fails."""
        _write(self.directory, self.settings, self.ami, self.sip, self._changes)
        (self.directory / "run" / "asterisk.ctl").unlink(missing_ok=True)
        began = time.monotonic()
        self._child.start()
        await self._child.until(self._listens, START_SECONDS, "listening")

        async def booted() -> bool:
            # Its command line is there before its commands are.
            left = max(1.0, START_SECONDS - (time.monotonic() - began))
            return "fully booted" in await self.cli("core waitfullybooted", timeout=left)

        await self._child.until(booted, START_SECONDS, "fully booted")

    async def _listens(self) -> bool:
        try:
            return "Asterisk" in await self.cli("core show version")
        except (OSError, asyncio.IncompleteReadError):
            return False

    async def cli(self, command: str, *, timeout: float = 10) -> str:
        """Run one command of Asterisk's command line and return what it prints."""
        return await asterisk_console.cli(self.directory / "run", command, timeout=timeout)

    async def stop(self) -> None:
        """End it now, with all its calls; returns when it is gone."""
        await self._child.stop()

    async def kill(self) -> None:
        """End it as a crash would: SIGKILL, nothing is said to anybody."""
        await self._child.kill()

    def freeze(self) -> None:
        """Stop it as a starved machine would (SIGSTOP); `thaw` lets it go on."""
        self._child.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen one go on."""
        self._child.send_signal(signal.SIGCONT)

    async def restart(self) -> None:
        """End it and start it again, with the same ports and configuration; calls are lost."""
        await self.stop()
        await self.start()


def private_settings(directory: Path, parts: Parts, **changes: Any) -> AsteriskSettings:
    """Settings for an instance on loopback with free ports; ``changes`` are fields of `AsteriskSettings`."""
    values: dict[str, Any] = {
        "base_directory": INSTANCE if parts.asterisk_root else str(directory.absolute()),
        "sip_host": LOOPBACK,
        "sip_port": free_sip_port(),
        "media_address": LOOPBACK,
        # Instances share the range: Asterisk takes another port of it where one is taken.
        "rtp_first_port": 20_000,
        "rtp_last_port": 32_000,
        # SIPp sends no audio while it waits.
        "rtp_timeout_seconds": 0,
        "node_rtp_timeout_seconds": 0,
        # All its callers may have one number.
        "caller_tries_limit": 0,
    }
    return AsteriskSettings(**{**values, **changes})


@asynccontextmanager
async def running(
    directory: Path, *, ami: AmiSettings | None = None, files: Mapping[str, str] | None = None,
    sip: SipSettings | None = None, **changes: Any,
) -> AsyncIterator[Gateway]:  # fmt: skip
    """Run an Asterisk in ``directory`` (its files stay there) until the block ends.

    ``changes`` are fields of `AsteriskSettings`; ``sip``: how it speaks SIP; ``files`` replaces or adds configuration
    files by name. Raises `prepare.PartMissingError` where there is no Asterisk, `processes.ProcessError` where it
    doesn't start.
    """
    parts = found()
    if ami is None:
        ami = AmiSettings(host=LOOPBACK, port=free_port(LOOPBACK), secret=secrets.token_hex(16))
    gateway = Gateway(parts, directory, private_settings(directory, parts, **changes), ami, files or {}, sip)
    try:
        await gateway.start()
        yield gateway
    finally:
        await gateway.stop()


def _binds(parts: Parts, directory: Path) -> list[tuple[Path, str]]:
    # Its own /etc/hosts: Asterisk looks up its machine's name, and PJSIP A.ROOT-SERVERS.NET (to learn its address),
    # with each call; without an answer each of them blocks for five seconds.
    hosts = [(directory / "hosts", "/etc/hosts")]
    if parts.asterisk_root:
        return [*hosts, (directory, INSTANCE)]
    return hosts if os.geteuid() == 0 else []


def _write(
    directory: Path, settings: AsteriskSettings, ami: AmiSettings, sip: SipSettings, changes: Mapping[str, str]
) -> None:
    for name in DIRECTORIES:
        (directory / name).mkdir(parents=True, exist_ok=True)
    names = f"localhost {socket.gethostname()} A.ROOT-SERVERS.NET"
    (directory / "hosts").write_text(f"127.0.0.1 {names}\n::1 localhost\n", encoding="ascii")
    rendered: dict[str, str] = importlib.import_module("ast_config.render").render(settings, ami, sip)
    for name, content in {**rendered, **changes}.items():
        (directory / "etc" / name).write_text(content, encoding="utf-8")
