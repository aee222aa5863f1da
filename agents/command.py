"""``callyard agent``: run a gateway's agent."""

from __future__ import annotations

import typer

from agents import worker
from callyard import health, log
from callyard.options import ConfigOption
from callyard.settings import HealthSettings, LogSettings, load

app = typer.Typer(add_completion=False, help=__doc__)


@app.command()
def agent(config: ConfigOption = None) -> None:
    """Run this gateway's agent: publishes what its callers do and carries out dial instructions.

    Two agents of one gateway (the same CALLYARD_GATEWAY_ID) are replicas: one speaks, the other stands by.
    """
    settings = load(*worker.GROUPS, LogSettings, HealthSettings, config=config)
    log.configure(settings[LogSettings], "agent")
    health.run(settings[HealthSettings], lambda stop, told: worker.work(settings, stop, told))
