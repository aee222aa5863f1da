"""``callyard hook``: this node's hook."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from callyard import health, log
from callyard.records import Source
from callyard.settings import (
    BigBlueButtonSettings,
    EslSettings,
    Group,
    HealthSettings,
    KafkaSettings,
    LogSettings,
    NodeSettings,
    SettingsError,
    load,
)
from fs_hooks import worker

app = typer.Typer(add_completion=False)


@app.command()
def hook(
    config: Annotated[Path | None, typer.Option(help="Settings file (TOML); CALLYARD_… variables win over it.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the registrations as JSON lines instead of publishing them.")
    ] = False,
) -> None:
    """Run this node's hook: tells Kafka which conferences run on it, until SIGTERM."""
    settings = load(*_groups(config, dry_run=dry_run), config=config)
    log.configure(settings[LogSettings], "hook")
    health.run(settings[HealthSettings], partial(worker.run, settings=settings, dry_run=dry_run))


def _groups(config: Path | None, *, dry_run: bool) -> list[type[Group]]:
    """What has to be set: each source's own settings only where it is on."""
    try:
        sources = load(NodeSettings, config=config)[NodeSettings].used_sources
    except SettingsError:  # told below with all others
        sources = frozenset({Source.FREESWITCH})
    groups: list[type[Group]] = [NodeSettings, LogSettings, HealthSettings]
    if Source.FREESWITCH in sources:
        groups.append(EslSettings)
    if Source.BIGBLUEBUTTON in sources:
        groups.append(BigBlueButtonSettings)
    return groups if dry_run else [*groups, KafkaSettings]
