"""``callyard render``: writes the configuration of the programs that Callyard works with.

The shared package imports no worker: the renderer is looked up by name, when it is called for.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

import typer

from callyard.options import JsonOption
from callyard.settings import AsteriskSettings, FreeswitchSettings, NodeSettings, load

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Write the configuration of other programs.")


@app.callback()
def render() -> None:
    """Write the configuration of the programs that Callyard works with."""


@app.command()
def asterisk(
    out: Annotated[Path, typer.Option(help="Directory to write to, for example /etc/asterisk.")],
    config: Annotated[Path | None, typer.Option(help="Settings file (TOML); the environment wins over it.")] = None,
    diff: Annotated[bool, typer.Option("--diff", help="Only show what would change; secrets aren't shown.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Only say what is missing or wrong there.")] = False,
    join: Annotated[bool, typer.Option("--join", help="Only the files for an Asterisk of one's own.")] = False,
    sounds: Annotated[Path | None, typer.Option(help="With --check: Asterisk's sounds, else those of Debian.")] = None,
    json: JsonOption = False,
) -> None:  # fmt: skip
    """Write the gateway's Asterisk configuration (settings: CALLYARD_ASTERISK_…, _SIP_…, _AMI_…, _GATEWAY_NODES).

    With --diff the exit status is 1 where something would change, with --check where something is wrong.
    """
    if diff and check:
        raise typer.BadParameter("--diff and --check are two questions: ask one at a time")
    command = importlib.import_module("ast_config.command")
    loaded = load(*command.GROUPS, config=config)
    if check:
        raise typer.Exit(command.check(loaded, out, join=join, sounds=sounds, json=json))
    raise typer.Exit(command.run(loaded, out, diff=diff, join=join))


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


@app.command()
def sounds(
    config: Annotated[Path | None, typer.Option(help="Settings file (TOML); the environment wins over it.")] = None,
    recordings: Annotated[Path, typer.Option(help="Asterisk's own sounds, one directory for each language.")] = Path(
        "/usr/share/asterisk/sounds"
    ),
    music: Annotated[Path, typer.Option(help="Directory of music that is cut into pieces.")] = Path(
        "/usr/share/asterisk/moh"
    ),
) -> None:  # fmt: skip
    """Fill CALLYARD_ASTERISK_SOUNDS_DIRECTORY: prompts in all languages of the settings, and music.

    What no package has recorded is spoken (needs espeak-ng and sox). Files that are there are left alone.
    """
    loaded = load(AsteriskSettings, config=config)
    command = importlib.import_module("ast_config.command")
    raise typer.Exit(command.run_sounds(loaded[AsteriskSettings], recordings, music))
