"""Waiting for a condition with a deadline; no test sleeps for a guessed time."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.02


async def until(
    condition: Callable[[], T | Awaitable[T]], timeout: float = 20, what: str | Callable[[], object] = "the condition"
) -> T:
    """Wait until ``condition()`` (plain or a coroutine function) is true, and return what it returned.

    Fails after ``timeout`` seconds, naming ``what``: a text, or a function that tells the state at that moment.
    """
    deadline = time.monotonic() + timeout
    while True:
        result = condition()
        value: T = await result if inspect.isawaitable(result) else result  # type: ignore[assignment]
        if value:
            return value
        if time.monotonic() > deadline:
            state = what() if callable(what) else what
            raise AssertionError(f"not so within {timeout:g} s: {state}")
        await asyncio.sleep(POLL_SECONDS)
