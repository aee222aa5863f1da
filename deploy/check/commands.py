"""Programs that are run to their end: no shell, a time limit, and none outlives the task that runs it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from deploy.check.report import CheckError


class Done(NamedTuple):
    """How a program ended and what it printed."""

    status: int
    out: str
    err: str

    def words(self) -> str:
        """What it said about a failure."""
        return (self.err.strip() or self.out.strip() or "it said nothing")[-4000:]


async def run(
    *argv: str | Path,
    given: str | None = None,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
    timeout: float = 120,
) -> Done:
    """Run it. ``given`` is its standard input. Raises `CheckError` where it can't start or takes too long."""
    words = [str(word) for word in argv]
    try:
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.DEVNULL if given is None else asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **(environment or {})},
            cwd=directory,
        )
    except OSError as error:
        raise CheckError(f"{words[0]} cannot be started: {error}") from None
    try:
        out, err = await asyncio.wait_for(process.communicate(None if given is None else given.encode()), timeout)
    except asyncio.TimeoutError:
        raise CheckError(f"{' '.join(words[:4])} … took longer than {timeout:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Done(process.returncode or 0, out.decode(errors="replace"), err.decode(errors="replace"))


async def must(
    *argv: str | Path,
    given: str | None = None,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
    timeout: float = 120,
) -> Done:
    """Run it; raises `CheckError` with its own words where it fails, too."""
    done = await run(*argv, given=given, environment=environment, directory=directory, timeout=timeout)
    if done.status != 0:
        raise CheckError(
            f"{' '.join(str(word) for word in argv[:5])} … ended with status {done.status}:\n{done.words()}"
        )
    return done
