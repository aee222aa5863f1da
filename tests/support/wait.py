"""Waiting for a condition with a deadline; no test sleeps for a guessed time."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

T = TypeVar("T")
What = str | Callable[[], object]

POLL_SECONDS = 0.02


@overload
async def until(
    condition: Callable[[], Awaitable[T]], timeout: float = ..., what: What = ..., *, every: float = ...
) -> T: ...
@overload
async def until(condition: Callable[[], T], timeout: float = ..., what: What = ..., *, every: float = ...) -> T: ...
async def until(
    condition: Callable[[], Any], timeout: float = 20, what: What = "the condition", *, every: float = POLL_SECONDS
) -> Any:
    """Wait until ``condition()`` (plain or a coroutine function) is true, and return what it returned.

    It is asked every ``every`` seconds. Fails after ``timeout`` seconds, naming ``what``: a text, or a function that
    tells the state at that moment.
    """
    deadline = time.monotonic() + timeout
    while True:
        result = condition()
        value = await result if inspect.isawaitable(result) else result
        if value:
            return value
        if time.monotonic() > deadline:
            state = what() if callable(what) else what
            raise AssertionError(f"not so within {timeout:g} s: {state}")
        await asyncio.sleep(every)
