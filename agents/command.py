"""``callyard agent``: run a gateway's agent."""

from __future__ import annotations

import typer
from prometheus_client import start_http_server

from agents import worker
from callyard import log, tasks
from callyard.options import ConfigOption
from callyard.settings import LogSettings, MetricsSettings, load

app = typer.Typer(add_completion=False, help=__doc__)


@app.command()
def agent(config: ConfigOption = None) -> None:
    """Run this gateway's agent: publishes what its callers do and carries out dial instructions.

    Two agents of one gateway (the same CALLYARD_GATEWAY_ID) are replicas: one speaks, the other stands by.
    """
    settings = load(*worker.GROUPS, LogSettings, MetricsSettings, config=config)
    log.configure(settings[LogSettings], "agent")
    metrics = settings[MetricsSettings]
    if metrics.port:
        start_http_server(metrics.port, metrics.host)
    tasks.run(lambda stop: worker.work(settings, stop))
