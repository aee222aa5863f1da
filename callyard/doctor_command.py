"""``callyard doctor``: looks at a machine's part of Callyard, changes nothing, and says what to do.

The shared package imports no worker: the checks are looked up by name, when they are called for.
"""

from __future__ import annotations

import importlib
import logging

import typer

from callyard.options import ConfigOption, JsonOption
from callyard.settings import EslSettings, FreeswitchSettings, KafkaSettings, NodeSettings, load

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
