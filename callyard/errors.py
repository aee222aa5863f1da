"""Errors that a person at the command line understands without a traceback."""

from __future__ import annotations

from typing import ClassVar


class CommandError(Exception):
    """A command failed for a reason that it can name and that says what to do: printed as it is."""

    status: ClassVar[int] = 1
    """The exit status that it ends the command with."""
