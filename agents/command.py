"""``callyard agent``: run a gateway's agent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer
from prometheus_client import start_http_server

from agents import worker
from callyard import log, tasks
from callyard.settings import LogSettings, MetricsSettings, load

app = typer.Typer(add_completion=False, help=__doc__)


@app.command()
def agent(
    config: Annotated[Optional[Path], typer.Option(help="Settings file (TOML); the environment wins.")] = None,  # noqa: UP045 - typer evaluates it on Python 3.10
) -> None:
    """Run this gateway's agent: publishes what its callers do and carries out dial instructions.

    Two agents of one gateway (the same CALLYARD_GATEWAY_ID) are replicas: one speaks, the other stands by.
    """
    settings = load(*worker.GROUPS, LogSettings, MetricsSettings, config=config)
    log.configure(settings[LogSettings], "agent")
    metrics = settings[MetricsSettings]
    if metrics.port:
        start_http_server(metrics.port, metrics.host)
    tasks.run(lambda stop: worker.work(settings, stop))
