"""``callyard render``: writes the configuration of the programs that Callyard works with.

The shared package imports no worker: the renderer is looked up by name, when it is called for.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

import typer

from callyard.settings import AmiSettings, AsteriskSettings, load

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
