"""Makes the directory of sounds: recordings of Asterisk's packages where there are any, else spoken by espeak-ng.

A file that is there is never overwritten: whoever has better recordings puts them in their place. Music is cut into
pieces, after each of which the music class makes its announcement: so their length is the announcements' interval.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from ast_config import sounds
from ast_config.dialogue import music
from ast_config.texts import TEXTS
from callyard.errors import CommandError
from callyard.settings import AsteriskSettings

Runner = Callable[[Sequence[str]], None]
"""Runs a program to its end; raises `CommandError` where it isn't there or fails."""

WORDS_PER_MINUTE = "150"


def run(argv: Sequence[str]) -> None:
    """Run espeak-ng or sox on this machine. Raises `CommandError` that says what is missing or went wrong."""
    try:
        done = subprocess.run(list(argv), capture_output=True, text=True, check=False)  # noqa: S603 - never a shell
    except FileNotFoundError:
        raise CommandError(f"{argv[0]} is missing: sudo apt-get install espeak-ng sox") from None
    if done.returncode != 0:
        raise CommandError(f"{argv[0]} failed: {done.stderr.strip()[-300:]}")


def make(settings: AsteriskSettings, packaged: Path, songs: Path, runner: Runner = run) -> list[str]:
    """Fill ``settings.sounds_directory`` with what the settings need; returns the names of the files that were made.

    ``packaged`` is Asterisk's directory of sounds, ``songs`` one of music. Raises `CommandError` where a sound has
    neither a recording nor a text.
    """
    if not settings.sounds_directory:
        raise CommandError("CALLYARD_ASTERISK_SOUNDS_DIRECTORY is not set: it says where the sounds are to be")
    made, unknown = [], []
    for language in sounds.languages(settings):
        for name in sounds.needed(settings):
            target = sounds.place(Path(settings.sounds_directory), language, name)
            if name.startswith("/") or sounds.files(target):
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            recordings = sounds.files(packaged / language / name)
            text = TEXTS.get(language, {}).get(name)
            if recordings:
                for file in recordings:
                    shutil.copyfile(file, target.parent / file.name)
            elif text is not None:
                _speak(text, language, target, runner)
            else:
                unknown.append(f"{language}/{name}")
                continue
            made.append(f"{language}/{name}")
    made += _cut(settings, songs, runner)
    if unknown:
        raise CommandError(f"no recording and no text for {', '.join(unknown)}: put files there yourself")
    return made


def _speak(text: str, language: str, target: Path, runner: Runner) -> None:
    spoken = target.parent / f".{target.name}.spoken.wav"
    try:
        runner(["espeak-ng", "-v", language, "-s", WORDS_PER_MINUTE, "-w", str(spoken), text])
        # For telephone lines, and for those that have more (G.722, Opus).
        for rate, ending in (("8000", "wav"), ("16000", "wav16")):
            whole = target.parent / f".{target.name}.{ending}"
            runner(["sox", str(spoken), "-t", "wav", "-b", "16", "-c", "1", "-r", rate, str(whole), "norm", "-3"])
            whole.rename(target.parent / f"{target.name}.{ending}")
    finally:
        spoken.unlink(missing_ok=True)


def _cut(settings: AsteriskSettings, songs: Path, runner: Runner) -> list[str]:
    directory = Path(music(settings))
    if directory.is_dir():
        return []
    whole = sorted(path for path in songs.iterdir() if path.suffix[1:] in sounds.FORMATS) if songs.is_dir() else []
    if not whole:
        raise CommandError(f"no music in {songs}: name a directory of music by --music")
    new = directory.with_name(f".{directory.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    for song in whole:
        piece = [str(new / f"{song.stem}-.wav"), "trim", "0", str(settings.announce_seconds)]
        runner(["sox", str(song), "-b", "16", "-c", "1", "-r", "8000", *piece, ":", "newfile", ":", "restart"])
    # sox begins a piece after the last one, too, where a song's length is a multiple of theirs.
    for path in new.iterdir():
        if path.stat().st_size <= 44:
            path.unlink()
    new.rename(directory)
    return sorted(f"{directory.name}/{path.name}" for path in directory.iterdir())
