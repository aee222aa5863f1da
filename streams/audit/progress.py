"""A bar that shows how much of a range was read: on a terminal only, on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from streams.audit.reading import Reading


@contextmanager
def bar(what: str, total: int, console: Console) -> Iterator[Callable[[int], None]]:
    """A bar for the length of the block, if the console is a terminal; gives what to call with how many are done."""
    if not console.is_terminal:
        yield lambda _: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)


@contextmanager
def shown(reading: Reading, what: str, console: Console) -> Iterator[None]:
    """Show the progress of a reading for the length of the block, if the console is a terminal."""
    with bar(what, reading.total, console) as progress:
        reading.on_progress = progress
        try:
            yield
        finally:
            reading.on_progress = None
