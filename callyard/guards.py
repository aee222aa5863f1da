"""What every guard on a library's insides shares: it is looked up by name and fails loudly when it is gone."""

from __future__ import annotations

from typing import Any


class GuardError(RuntimeError):
    """A guard does not fit the installed libraries, or found what it guards against."""


def patched(owner: Any, name: str) -> Any:
    """An attribute that a guard relies on. Raises `GuardError` where it is no longer there."""
    try:
        return getattr(owner, name)
    except AttributeError:
        raise GuardError(f"{owner!r} has no {name}: the guards don't fit this version") from None
