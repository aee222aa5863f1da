"""What ``callyard render freeswitch`` does, once its settings are read."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from callyard.settings import FreeswitchSettings, NodeSettings
from fs_hooks.render import SCRIPT, render


def run(settings: FreeswitchSettings, node: NodeSettings, directory: Path, *, diff: bool) -> int:
    """Write the set into ``directory``, or print what would change; returns the exit status.

    With ``diff`` it is 0 where nothing would change, else 1, as diff(1) has it. Raises `CommandError`.
    """
    rendered = render(settings, node)
    out = Console(soft_wrap=True, markup=False, highlight=False)
    if diff:
        text = rendered.differences(directory)
        out.print(text, end="")
        return 1 if text else 0
    written = rendered.write(directory)
    if not written:
        out.print(f"{directory} is up to date")
        return 0
    out.print(f"{directory}: wrote {', '.join(written)}")
    out.print(f"Put it in place: sh {directory / SCRIPT}")
    return 0
