"""``callyard hook``: this node's hook."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from callyard import health, log
from callyard.settings import EslSettings, Group, HealthSettings, KafkaSettings, LogSettings, NodeSettings, load
from fs_hooks import worker

app = typer.Typer(add_completion=False)


@app.command()
def hook(
    config: Annotated[Path | None, typer.Option(help="Settings file (TOML); CALLYARD_… variables win over it.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the registrations as JSON lines instead of publishing them.")
    ] = False,
) -> None:
    """Run this node's hook: tells Kafka which conferences run on its FreeSWITCH, until SIGTERM."""
    groups: list[type[Group]] = [NodeSettings, EslSettings, LogSettings, HealthSettings]
    if not dry_run:
        groups.append(KafkaSettings)
    settings = load(*groups, config=config)
    log.configure(settings[LogSettings], "hook")
    health.run(settings[HealthSettings], partial(worker.run, settings=settings, dry_run=dry_run))
