"""Asterisk's command line over its control socket: what ``asterisk -rx`` speaks, without the program."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path


async def cli(run_directory: Path, command: str, *, timeout: float = 10) -> str:
    """Run one command of Asterisk's command line and return what it prints.

    ``run_directory`` holds ``asterisk.ctl`` (Debian: /run/asterisk). ``timeout``: seconds. Raises `OSError` where
    nobody listens there or this user may not connect, `asyncio.IncompleteReadError` or `asyncio.TimeoutError` where
    what listens doesn't answer as Asterisk does.

    The protocol: a greeting line from Asterisk, then the command led by ``cli quit after `` and ended by NUL; Asterisk
    answers and closes (main/asterisk.c, netconsole).
    """
    return await asyncio.wait_for(_cli(run_directory, command), timeout)


async def _cli(run_directory: Path, command: str) -> str:
    # Through a descriptor of its directory: a socket's path is limited to 107 bytes, a work directory is not.
    directory = os.open(run_directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        reader, writer = await asyncio.open_unix_connection(f"/proc/self/fd/{directory}/asterisk.ctl")
    finally:
        os.close(directory)
    try:
        await reader.readuntil(b"\n")
        writer.write(f"cli quit after {command}\0".encode())
        answer = await reader.read(-1)
    finally:
        writer.close()
    return answer.replace(b"\0", b"").decode(errors="replace")
