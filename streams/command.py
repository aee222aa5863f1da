"""``callyard stream``: run a stream worker."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from callyard import log
from callyard.settings import HealthSettings, KafkaSettings, LogSettings, PolicySettings, StreamSettings, load
from streams import worker

app = typer.Typer(add_completion=False, help=__doc__)


@app.command()
def stream(
    config: Annotated[Optional[Path], typer.Option(help="Settings file (TOML); the environment wins.")] = None,  # noqa: UP045 - typer evaluates it on Python 3.10
) -> None:
    """Run a stream worker: keeps the conference-to-node table and decides who is dialled where.

    Any number of workers share the partitions. Ends at SIGTERM after the decisions under way.
    """
    settings = load(KafkaSettings, StreamSettings, PolicySettings, LogSettings, HealthSettings, config=config)
    log.configure(settings[LogSettings], "stream")
    worker.run(settings)
