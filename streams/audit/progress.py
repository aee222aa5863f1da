"""A bar that shows how much of a range was read: on a terminal only, on standard error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from streams.audit.reading import Reading


@contextmanager
def shown(reading: Reading, what: str, console: Console) -> Iterator[None]:
    """Show the progress of a reading for the length of the block, if the console is a terminal."""
    if not console.is_terminal:
        yield
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=reading.total)
        reading.on_progress = lambda done: bar.update(task, completed=done)
        try:
            yield
        finally:
            reading.on_progress = None
