"""``callyard doctor``: looks at a machine's part of Callyard, changes nothing, and says what to do.

The shared package imports no worker: the checks are looked up by name, when they are called for.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from callyard import doctor_checks
from callyard.doctor import Check, examine, tell
from callyard.options import ConfigOption, JsonOption
from callyard.settings import (
    AmiSettings,
    EslSettings,
    FreeswitchSettings,
    GatewaySettings,
    KafkaSettings,
    NodeSettings,
    load,
)

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Look at what is installed, and say what to do.")


@app.callback()
def doctor() -> None:
    """Look at a machine's part of Callyard, change nothing, and say what to do; exit status 1 where that is needed."""


@app.command()
def node(config: ConfigOption = None, json: JsonOption = False) -> None:
    """Check this BigBlueButton node: event socket, dialplan, addresses, clock, Kafka.

    With the hook's settings and those of 'render freeswitch'.
    """
    # aiokafka logs what it raises, too; here the finding says it once.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    loaded = load(NodeSettings, EslSettings, FreeswitchSettings, KafkaSettings, config=config)
    raise typer.Exit(importlib.import_module("fs_hooks.doctor").run(loaded, json=json))


@app.command()
def gateway(
    directory: Annotated[Path, typer.Option("--dir", help="Where the configuration was rendered to.")] = Path(
        "/etc/asterisk"
    ),
    run_directory: Annotated[Path, typer.Option("--run", help="Asterisk's run directory, with asterisk.ctl.")] = Path(
        "/run/asterisk"
    ),
    sounds: Annotated[Path | None, typer.Option(help="Asterisk's sounds; else those of Debian.")] = None,
    join: Annotated[bool, typer.Option("--join", help="An Asterisk of one's own includes the files.")] = False,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Check this gateway: configuration, sounds, the running Asterisk, the manager user, names, clock, Kafka.

    With the settings of 'render asterisk' and of the agent.
    """
    # aiokafka and panoramisk log what they raise, too; here the finding says it once.
    for name in ("aiokafka", "panoramisk"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    command = importlib.import_module("ast_config.command")
    loaded = load(*command.GROUPS, KafkaSettings, config=config)
    looks = importlib.import_module("ast_config.doctor")
    agent = importlib.import_module("agents.doctor")
    checks = [
        Check("asterisk", partial(looks.running, loaded, run_directory, join=join)),
        Check("manager", partial(agent.manager, loaded[AmiSettings])),
        Check("names", looks.names),
        Check("clock", doctor_checks.kernel_clock),
        Check("kafka", partial(doctor_checks.bus, loaded[KafkaSettings], "gateway", loaded[GatewaySettings].id)),
    ]
    found = [*command.found_in(loaded, directory, join=join, sounds=sounds), *asyncio.run(examine(checks))]
    raise typer.Exit(tell(found, json=json))
