"""Which prompts have no sound file: Asterisk plays silence for one, and goes on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from callyard.settings import AsteriskSettings

FORMATS = frozenset({"alaw", "g722", "gsm", "pcm", "sln", "sln16", "sln48", "ul", "ulaw", "wav", "wav49", "WAV"})
"""Endings of files that Asterisk's format modules read."""


def missing_sounds(settings: AsteriskSettings, sounds: Path, languages: Iterable[str] | None = None) -> list[str]:
    """The prompts of the settings without a file, as ``<language>/<name>``, sorted.

    ``sounds`` is Asterisk's directory of sounds (Debian: /usr/share/asterisk/sounds); a file counts where Asterisk
    looks for it: in the language's directory, in its first part's (``de`` of ``de_AT``), or beside those.
    """
    values = (value for name, value in settings if name.startswith("prompt_") and value)
    prompts = {prompt for value in values for prompt in str(value).split("&")}
    return sorted(
        f"{language}/{prompt}"
        for language in languages or [settings.language]
        for prompt in prompts
        if not any(_exists(place) for place in _places(sounds, language, prompt))
    )


def _places(sounds: Path, language: str, prompt: str) -> list[Path]:
    if prompt.startswith("/"):
        return [Path(prompt)]
    # A directory of the prompt's own comes before the language's, too: digits/1 is en/digits/1 or digits/en/1.
    head, _, tail = prompt.rpartition("/")
    found = [sounds / prompt]
    for name in {language, language.split("_", maxsplit=1)[0]}:
        found += [sounds / name / prompt, sounds / head / name / tail]
    return found


def _exists(place: Path) -> bool:
    return any((place.parent / f"{place.name}.{ending}").is_file() for ending in FORMATS)
