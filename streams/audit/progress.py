"""What long readings say beside their result: on standard error; a bar of how much was read, on a terminal only."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from streams.audit.lines import Lines
from streams.audit.reading import Reading


def quiet() -> Console:
    """The console for what isn't the result; the client's own lines, which repeat what is raised, are silenced.

    Garbage is looked for seldom: reading makes millions of short-lived objects and hardly a cycle (replay: a third
    faster).
    """
    gc.freeze()
    gc.set_threshold(50_000, 50, 50)
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    return Lines(stderr=True)


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
