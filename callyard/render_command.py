"""``callyard render``: writes the configuration of the programs that Callyard works with.

The shared package imports no worker: the renderer is looked up by name, when it is called for.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

import typer

from callyard.settings import AmiSettings, AsteriskSettings, FreeswitchSettings, NodeSettings, load

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Write the configuration of other programs.")


@app.callback()
def render() -> None:
    """Write the configuration of the programs that Callyard works with."""


@app.command()
def asterisk(
    out: Annotated[Path, typer.Option(help="Directory to write to, for example /etc/asterisk.")],
    config: Annotated[Path | None, typer.Option(help="Settings file (TOML); the environment wins over it.")] = None,
    diff: Annotated[bool, typer.Option("--diff", help="Only show what would change.")] = False,
) -> None:  # fmt: skip
    """Write the gateway's Asterisk configuration (settings: CALLYARD_ASTERISK_…, CALLYARD_AMI_…).

    With --diff the exit status is 1 where something would change.
    """
    loaded = load(AsteriskSettings, AmiSettings, config=config)
    command = importlib.import_module("ast_config.command")
    raise typer.Exit(command.run(loaded[AsteriskSettings], loaded[AmiSettings], out, diff=diff))


@app.command()
def freeswitch(
    out: Annotated[Path, typer.Option(help="Directory to write to: /etc/bigbluebutton/bbb-conf/callyard.")],
    config: Annotated[Path | None, typer.Option(help="Settings file (TOML); the environment wins over it.")] = None,
    diff: Annotated[bool, typer.Option("--diff", help="Only show what would change.")] = False,
) -> None:  # fmt: skip
    """Write a node's dialplan and BigBlueButton properties (settings: CALLYARD_FREESWITCH_…, CALLYARD_NODE_…).

    Its apply.sh then puts them in place. With --diff the exit status is 1 where something would change.
    """
    loaded = load(FreeswitchSettings, NodeSettings, config=config)
    command = importlib.import_module("fs_hooks.render_command")
    raise typer.Exit(command.run(loaded[FreeswitchSettings], loaded[NodeSettings], out, diff=diff))
