"""What ``callyard render asterisk --check`` looks at: the rendered files as they lie on the disk, and what they name.

It looks at files only, so it runs where no Asterisk does; the running one is the doctor's (`ast_config.doctor`).
"""

from __future__ import annotations

import ssl
import stat
from collections.abc import Mapping
from pathlib import Path

from ast_config.dialogue import music
from ast_config.render import owned
from ast_config.sounds import missing_sounds
from callyard.doctor import Finding, Findings
from callyard.settings import AmiSettings, AsteriskSettings, SipSettings

SOUNDS = Path("/usr/share/asterisk/sounds")
DATA = Path("/usr/share/asterisk")
SECRETS = frozenset({"manager_callyard.conf", "pjsip.conf"})
"""Files that hold passwords."""
AGAIN = "render again: callyard render asterisk --out DIRECTORY (--diff shows what changes)"


def check_files(directory: Path, files: Mapping[str, str]) -> list[Finding]:
    """Whether the directory holds what would be rendered, unchanged, and who may read it."""
    found, ours = Findings("files"), owned(files)
    there = ours.present(directory)
    for name, content in sorted(files.items()):
        path = directory / name
        if name not in there:
            found.wrong(f"{path} is missing", AGAIN)
            continue
        if there[name] != content:
            if ours.is_ours(name, there[name]):
                found.wrong(f"{path} is not what the settings ask for", AGAIN)
            else:
                found.wrong(f"{path} is not Callyard's, or was edited since", f"move it away, then {AGAIN}")
        if name in SECRETS and path.stat().st_mode & stat.S_IRWXO:
            found.wrong(f"{path} holds passwords and others may read it", f"chmod o= {path}")
    if not found.all:
        found.fine(f"{directory} holds all {len(files)} files as the settings ask for")
    return found.all


def check_settings(settings: AsteriskSettings, sip: SipSettings) -> list[Finding]:
    """What the settings allow but a gateway on the telephone network can't do with."""
    found = Findings("settings")
    if settings.trunk_networks == "127.0.0.1":
        found.warn(
            "calls are taken from this machine only",
            "set CALLYARD_ASTERISK_TRUNK_NETWORKS to the telephone provider's addresses",
        )
    if any(network.endswith("/0") for network in settings.trunk_networks.split(",")):
        found.wrong(
            "calls are taken from everywhere", "set CALLYARD_ASTERISK_TRUNK_NETWORKS to the provider's addresses only"
        )
    if sip.trunk_kind == "pbx" and sip.trunk_password is None:
        found.warn("the PBX gives no password: its address is all that is checked", "set CALLYARD_SIP_TRUNK_PASSWORD")
    if not found.all:
        found.fine("nothing stands out")
    return found.all


def check_certificates(sip: SipSettings, ami: AmiSettings) -> list[Finding]:
    """Whether certificates and keys can be loaded and belong together, and who may read the keys."""
    found, pairs = Findings("certificates"), []
    if "tls" in sip.transports.split(","):
        pairs.append(("CALLYARD_SIP_TLS", sip.tls_certfile, sip.tls_keyfile))
        _load(found, "CALLYARD_SIP_TLS_CAFILE", sip.tls_cafile)
    if ami.tls:
        pairs.append(("CALLYARD_AMI_TLS_SERVER", ami.tls_server_certfile, ami.tls_server_keyfile))
    for prefix, certificate, key in pairs:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
        except (OSError, ssl.SSLError) as error:
            found.wrong(
                f"{certificate} with {key} cannot be loaded: {error}", f"check {prefix}_CERTFILE and {prefix}_KEYFILE"
            )
            continue
        if Path(key).stat().st_mode & stat.S_IRWXO:
            found.wrong(f"others may read the key {key}", f"chmod o= {key}")
        else:
            found.fine(f"{certificate} with its key can be loaded")
    if not found.all:
        found.fine("none is used")
    return found.all


def _load(found: Findings, variable: str, path: str) -> None:
    try:
        ssl.create_default_context(cafile=path)
    except (OSError, ssl.SSLError) as error:
        found.wrong(f"{path} cannot be loaded: {error}", f"check {variable}: CA certificates, PEM")


def check_sounds(settings: AsteriskSettings, sounds: Path = SOUNDS) -> list[Finding]:
    """Whether each prompt has a file."""
    found = Findings("sounds")
    rendered = settings.sounds_directory
    if not rendered and not sounds.is_dir():
        found.warn(f"{sounds} isn't there, so sounds can't be looked for", "name the directory by --sounds")
        return found.all
    for prompt in missing_sounds(settings, sounds):
        found.wrong(
            f"no file for {prompt}: callers hear nothing there",
            "run 'callyard render sounds'" if rendered else "install the sounds, or change CALLYARD_ASTERISK_PROMPT_…",
        )
    if not found.all:
        found.fine(f"all prompts are in {rendered or sounds}")
    return found.all


def check_music(settings: AsteriskSettings, data: Path = DATA) -> list[Finding]:
    """Whether there is music for who waits."""
    found, directory = Findings("music"), data / music(settings)
    if not directory.is_dir() or not any(path.is_file() for path in directory.iterdir()):
        found.wrong(
            f"no music in {directory}: who waits hears nothing",
            "put files there, or set CALLYARD_ASTERISK_MUSIC_DIRECTORY; cut by 'callyard render sounds', if used",
        )
    else:
        found.fine(f"there is music in {directory}")
    return found.all
