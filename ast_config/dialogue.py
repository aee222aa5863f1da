"""The dialogue's settings as the templates need them: pieces of dialplan, made from checked values. Pure."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from ast_config.sounds import DIGITS
from callyard.settings import AsteriskSettings
from callyard.settings.dialogue import pairs, words


def music(settings: AsteriskSettings) -> str:
    """The directory of what waiting callers hear; of rendered pieces, their length is part of the name."""
    if not settings.sounds_directory:
        return settings.music_directory
    return f"{settings.sounds_directory}/music-{settings.announce_seconds}"


def dialogue(settings: AsteriskSettings) -> dict[str, Any]:
    """Values for the templates, by name."""
    digits = settings.caller_id_digits
    shown = {
        "full": "${CALLYARD_NUMBER}",
        "masked": f"${{CALLYARD_NUMBER:0:-{digits}}}{'x' * digits}",
        "first": f"${{CALLYARD_NUMBER:0:{digits}}}",
    }.get(settings.caller_id, "")
    prompts = {name: _placed(settings, value) for name, value in settings if name.startswith("prompt_")}
    return {
        **prompts,
        "numbers": pairs(settings.direct_numbers),
        "prefixes": words(settings.direct_prefixes),
        "number_languages": pairs(settings.language_numbers),
        "trunk_languages": pairs(settings.language_trunks),
        "valid_entered": _valid(settings, "CALLYARD_ENTERED"),
        "valid_exten": _valid(settings, "EXTEN"),
        # Nothing is left of a number that is no longer than what is masked.
        "least_shown": digits + 1 if settings.caller_id == "masked" else 1,
        "shown_number": shown,
        "shown_name": settings.caller_name.replace("{number}", "${CALLYARD_SHOWN}"),
        "dial_options": _dial_options(settings, prompts["prompt_connected"]),
        "digit_sounds": _placed(settings, DIGITS),
        "music": music(settings),
        # The pieces of one song in their order; whole songs in any.
        "music_sort": "alpha" if settings.sounds_directory else "random",
    }


def _placed(settings: AsteriskSettings, prompt: str) -> str:
    # A name with no directory of its own is looked up among the rendered sounds, where there are any.
    base = settings.sounds_directory
    files = prompt.split("&") if prompt else []
    return "&".join(file if not base or file.startswith("/") else str(PurePosixPath(base, file)) for file in files)


def _valid(settings: AsteriskSettings, variable: str) -> str:
    length = f'${{REGEX("^[0-9]{{{settings.least_digits},{settings.most_digits}}}$" ${{{variable}}})}}'
    if not settings.number_pattern:
        return f"$[{length}]"
    return f'$[{length} & ${{REGEX("^({settings.number_pattern})$" ${{{variable}}})}}]'


def _dial_options(settings: AsteriskSettings, connected: str) -> str:
    options = "m(callyard-dialing)" if settings.while_dialing == "music" else "r"
    if connected:
        options += f"A(:{connected})"
    if settings.longest_call_seconds:
        options += f"L(${{CALLYARD_LEFT}}000:{settings.warn_seconds}000)"
    return options
