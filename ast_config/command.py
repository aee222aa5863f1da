"""What ``callyard render asterisk`` does, once its settings are read."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from ast_config import speech
from ast_config.files import differences, write
from ast_config.render import ValueRefusedError, render
from callyard.settings import AmiSettings, AsteriskSettings, SettingsError


def run(settings: AsteriskSettings, ami: AmiSettings, directory: Path, *, diff: bool) -> int:
    """Write the set into ``directory``, or print what would change; returns the exit status.

    With ``diff`` it is 0 where nothing would change, else 1, as diff(1) has it.
    """
    try:
        files = render(settings, ami)
    except ValueRefusedError as error:
        raise SettingsError([str(error)]) from None
    out = Console(soft_wrap=True, markup=False, highlight=False)
    if diff:
        text = differences(directory, files)
        out.print(text, end="")
        return 1 if text else 0
    written = write(directory, files)
    if not written:
        out.print(f"{directory} is up to date")
        return 0
    out.print(f"{directory}: wrote {', '.join(written)}")
    out.print("Load it: asterisk -rx 'core reload' (changed modules, ports and transports need a restart).")
    return 0


def run_sounds(settings: AsteriskSettings, packaged: Path, songs: Path) -> int:
    """Make the directory of sounds that the settings name; returns the exit status."""
    made = speech.make(settings, packaged, songs)
    Console(soft_wrap=True, markup=False, highlight=False).print(
        f"{settings.sounds_directory}: made {len(made)} sounds and pieces of music" if made
        else f"{settings.sounds_directory} is complete"
    )  # fmt: skip
    return 0
