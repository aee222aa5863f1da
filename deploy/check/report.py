"""One line for each check: what held, or what did not and why. A check is failed by a `CommandError`; a bug is no check."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from callyard.errors import CommandError


class FailedCheck(CommandError):
    """What was checked does not hold. The text says what, in the words of the program that found it."""


class Report:
    """Prints as it goes; ``failed`` and ``passed`` count."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self.passed = 0
        self.failed = 0
        self.began = time.monotonic()

    @contextmanager
    def check(self, name: str) -> Iterator[Callable[[str], None]]:
        """One check: the block does it, and calls what it gets with what is worth knowing of one that holds."""
        notes: list[str] = []
        began = time.monotonic()
        try:
            yield notes.append
        except CommandError as error:
            self.failed += 1
            self._line("FAIL", began, name, str(error))
        else:
            self.passed += 1
            self._line("ok", began, name, "; ".join(notes))

    def summary(self) -> str:
        return f"{self.passed} checks hold, {self.failed} fail ({time.monotonic() - self.began:.0f} s)"

    def _line(self, word: str, began: float, name: str, text: str) -> None:
        first, *more = text.splitlines() or [""]
        self._say(f"{word:4} {time.monotonic() - began:6.1f} s  {name}{': ' if first else ''}{first}")
        for line in more:
            self._say(f"{'':15}{line}")
