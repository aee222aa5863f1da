"""Folders outside the checkout: what can be fetched again (cache) and what cannot (state).

Both are per user. Nothing secret goes into either.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_folder() -> Path:
    """Where downloaded parts are kept: ``CALLYARD_CACHE``, else ``callyard`` in the user's cache folder."""
    named = os.environ.get("CALLYARD_CACHE")
    return Path(named) if named else _base("XDG_CACHE_HOME", ".cache") / "callyard"


def state_folder() -> Path:
    """Where an embedded Kafka keeps its records unless a command names another folder."""
    return _base("XDG_STATE_HOME", ".local/state") / "callyard"


def _base(variable: str, default: str) -> Path:
    # The XDG base directory specification: a relative path in these variables is to be ignored.
    named = Path(os.environ.get(variable, ""))
    return named if named.is_absolute() else Path.home() / default


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on this file, so that two commands don't prepare the same part at once.

    Waits as long as another process holds it. The file stays: removing it would let two processes lock two files.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
