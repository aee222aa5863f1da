"""What ``callyard render asterisk`` does, once its settings are read."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from ast_config import check as checks
from ast_config import speech
from ast_config.render import ValueRefusedError, owned, render
from callyard import doctor
from callyard.settings import AmiSettings, AsteriskSettings, GatewaySettings, Loaded, SettingsError, SipSettings

GROUPS = (AsteriskSettings, AmiSettings, SipSettings, GatewaySettings)
"""The settings that the gateway's Asterisk is rendered from."""
HOW_TO_JOIN = """\
Include each file at the end of yours of that name, in extensions.conf for example by
  #include {0}/extensions_callyard.conf
Then, where callers come in: Goto(callyard-entry,s,1). See docs/gateway.md, "An Asterisk of one's own"."""


def rendered(settings: Loaded, *, join: bool) -> dict[str, str]:
    """The files that these settings ask for. Raises `SettingsError` for a value that no file can hold."""
    try:
        return render(
            settings[AsteriskSettings], settings[AmiSettings], settings[SipSettings], settings[GatewaySettings].nodes,
            join=join,
        )  # fmt: skip
    except ValueRefusedError as error:
        raise SettingsError([str(error)]) from None


def run(settings: Loaded, directory: Path, *, diff: bool, join: bool) -> int:
    """Write the set into ``directory``, or print what would change; returns the exit status.

    With ``diff`` it is 0 where nothing would change, else 1, as diff(1) has it. With ``join`` only those files are
    written that an Asterisk of one's own includes.
    """
    files = owned(rendered(settings, join=join))
    out = Console(soft_wrap=True, markup=False, highlight=False)
    if diff:
        text = files.differences(directory)
        out.print(text, end="")
        return 1 if text else 0
    written = files.write(directory)
    if not written:
        out.print(f"{directory} is up to date")
        return 0
    out.print(f"{directory}: wrote {', '.join(written)}")
    if join:
        out.print(HOW_TO_JOIN.format(directory))
    out.print("Load it: asterisk -rx 'core reload' (changed modules, ports and transports need a restart).")
    return 0


def found_in(settings: Loaded, directory: Path, *, join: bool, sounds: Path | None) -> list[doctor.Finding]:
    """What is found in ``directory`` and in what it names."""
    asterisk, sip = settings[AsteriskSettings], settings[SipSettings]
    return [
        *checks.check_files(directory, rendered(settings, join=join)),
        *checks.check_settings(asterisk, sip),
        *checks.check_certificates(sip, settings[AmiSettings]),
        *checks.check_sounds(asterisk, sounds or checks.SOUNDS),
        *checks.check_music(asterisk, sounds.parent if sounds else checks.DATA),
    ]


def check(settings: Loaded, directory: Path, *, join: bool, sounds: Path | None, json: bool) -> int:
    """Say what is missing or wrong in ``directory`` and in what it names; returns the exit status: 1 where it is."""
    return doctor.tell(found_in(settings, directory, join=join, sounds=sounds), json=json)


def run_sounds(settings: AsteriskSettings, packaged: Path, songs: Path) -> int:
    """Make the directory of sounds that the settings name; returns the exit status."""
    made = speech.make(settings, packaged, songs)
    Console(soft_wrap=True, markup=False, highlight=False).print(
        f"{settings.sounds_directory}: made {len(made)} sounds and pieces of music" if made
        else f"{settings.sounds_directory} is complete"
    )  # fmt: skip
    return 0
