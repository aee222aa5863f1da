"""Which sound files the dialogue needs, in which languages, and which are missing. Reads directories, no more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from callyard.settings import AsteriskSettings
from callyard.settings.dialogue import pairs

FORMATS = frozenset(
    {"alaw", "g722", "gsm", "pcm", "sln", "sln16", "sln48", "ul", "ulaw", "wav", "wav16", "wav49", "WAV"}
)
"""Endings of files that Asterisk's format modules read."""
DIGITS = "digits"
"""The directory of the spoken digits, beside the other sounds."""


def languages(settings: AsteriskSettings) -> list[str]:
    """The languages in which callers can be spoken to, the usual one first."""
    others = {
        language for value in (settings.language_numbers, settings.language_trunks) for _, language in pairs(value)
    }
    return [settings.language, *sorted(others - {settings.language})]


def needed(settings: AsteriskSettings) -> list[str]:
    """The names of all sounds that these settings play, sorted."""
    values = (str(value) for name, value in settings if name.startswith("prompt_") and value)
    prompts = {prompt for value in values for prompt in value.split("&")}
    return sorted(prompts | ({f"{DIGITS}/{digit}" for digit in range(10)} if settings.read_back else set()))


def place(directory: Path, language: str, name: str) -> Path:
    """Where Asterisk looks for a sound that is named by an absolute path: the language comes before the last part."""
    return directory / Path(name).parent / language / Path(name).name


def files(path: Path) -> list[Path]:
    """The files of a sound, given without its ending."""
    return [file for file in (path.parent / f"{path.name}.{ending}" for ending in sorted(FORMATS)) if file.is_file()]


def missing_sounds(settings: AsteriskSettings, sounds: Path, only: Iterable[str] | None = None) -> list[str]:
    """The sounds of the settings without a file, as ``<language>/<name>``, sorted.

    ``sounds`` is Asterisk's directory of sounds (Debian: /usr/share/asterisk/sounds); where the settings name a
    directory of rendered ones, that counts instead. A sound of another language counts as missing. ``only``: other
    languages than those of the settings.
    """
    spoken = languages(settings) if only is None else list(only)
    return sorted(
        f"{language}/{name}"
        for language in spoken
        for name in needed(settings)
        if not any(files(path) for path in _places(settings, sounds, language, name))
    )


def _places(settings: AsteriskSettings, sounds: Path, language: str, name: str) -> Iterator[Path]:
    # "de" of "de_AT", too: Asterisk looks there next.
    for spoken in dict.fromkeys((language, language.split("_", maxsplit=1)[0])):
        if name.startswith("/"):
            yield place(Path("/"), spoken, name)
        elif settings.sounds_directory:
            yield place(Path(settings.sounds_directory), spoken, name)
        else:
            yield sounds / spoken / name
