"""The timeline that the demo prints: what happened, when, and how long each step took."""

from __future__ import annotations

import time
from typing import Any

import orjson
from rich.console import Console
from rich.text import Text


class Timeline:
    """Prints a line for each thing that happened, or with ``as_json`` one JSON object."""

    def __init__(self, console: Console, *, as_json: bool) -> None:
        self._console = console
        self._as_json = as_json
        self._began = time.time()

    def act(self, title: str) -> None:
        """A headline."""
        if not self._as_json:
            self._console.print(Text(f"\n{title}", style="bold"))

    def tell(self, what: str, at: float | None = None, **figures: Any) -> None:
        """Something happened, ``at`` seconds since 1970-01-01 UTC (now where it isn't said)."""
        seconds = (time.time() if at is None else at) - self._began
        if self._as_json:
            self._console.print(orjson.dumps({"seconds": round(seconds, 4), "what": what, **figures}).decode())
        else:
            self._console.print(Text.assemble((f"{seconds:9.3f} s  ", "cyan"), what))

    def step(self, what: str, milliseconds: float) -> None:
        """A step of what was told before, and how long it took."""
        if self._as_json:
            self._console.print(orjson.dumps({"step": what, "ms": round(milliseconds, 1)}).decode())
        else:
            self._console.print(Text.assemble((f"{milliseconds:+19.1f} ms  ", "green"), what))

    def prose(self, text: str) -> None:
        """Words for a reader only."""
        if not self._as_json:
            self._console.print(Text(text))
