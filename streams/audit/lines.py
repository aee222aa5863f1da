"""Lines for people: what comes from callers and from Kafka can't steer the terminal that it is shown on.

A caller's number is whatever a telephone sent, and anybody who may write to a topic can put anything into a record.
So each line is one line, and what isn't printable in it stands there as an escape.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console


def plain(text: str) -> str:
    r"""The text with what isn't printable (controls, line breaks, changes of direction) as ``\x1b`` and the like."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Lines(Console):
    """A console that prints lines as they are, none of them broken, coloured or interpreted."""

    def __init__(self, *, stderr: bool = False) -> None:
        # Without emoji=False a part of an IPv6 address, ":100:", becomes a picture.
        super().__init__(stderr=stderr, soft_wrap=True, markup=False, highlight=False, emoji=False)

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(plain(one) if isinstance(one, str) else one for one in objects), **options)
