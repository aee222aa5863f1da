"""One line for each check: what held, or what did not and why. A `CommandError` fails a check; a bug ends the run."""

from __future__ import annotations

import time
from collections.abc import Callable

from callyard.errors import CommandError


class CheckError(CommandError):
    """What was checked does not hold. The text says what, in the words of the program that found it."""


class Check:
    """One check: its block does it, and calls this with what is worth knowing of one that holds."""

    def __init__(self, report: Report, name: str) -> None:
        self._report = report
        self._name = name
        self._notes: list[str] = []
        self._began = time.monotonic()

    def __call__(self, note: str) -> None:
        self._notes.append(note)

    def __enter__(self) -> Check:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        took = time.monotonic() - self._began
        if error is None:
            self._report.passed += 1
            self._report.line("ok", took, self._name, "; ".join(self._notes))
            return False
        if isinstance(error, CommandError):
            self._report.failed += 1
            self._report.line("FAIL", took, self._name, str(error))
            return True
        return False


class Report:
    """Prints as it goes; ``failed`` and ``passed`` count."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self.passed = 0
        self.failed = 0
        self._began = time.monotonic()

    def check(self, name: str) -> Check:
        """A check that begins now. One that fails is told, and what follows its block goes on."""
        return Check(self, name)

    def summary(self) -> str:
        return f"{self.passed} checks hold, {self.failed} fail ({time.monotonic() - self._began:.0f} s)"

    def line(self, word: str, seconds: float, name: str, text: str) -> None:
        """Print how one went."""
        first, *more = text.splitlines() or [""]
        self._say(f"{word:4} {seconds:6.1f} s  {name}{': ' if first else ''}{first}")
        for line in more:
            self._say(f"{'':15}{line}")
