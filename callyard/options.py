"""Options that several commands have, with the same name and meaning everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigOption = Annotated[Path | None, typer.Option("--config", help="Settings file (TOML); the environment wins.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
