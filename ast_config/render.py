"""Renders the gateway's Asterisk configuration from settings: values in, files out; it does no IO but read templates.

No setting can break out of its line: each is checked by its group's pattern when settings are read, and `_finalize`
refuses what could end a line or begin a comment, whatever the templates put it into. A name that a template doesn't
know is an error (StrictUndefined), never an empty string.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ast_config.dialogue import dialogue
from callyard.nodes import AllowedNodes
from callyard.owned_files import SEMICOLON, Rendered, sealed
from callyard.settings import AmiSettings, AsteriskSettings, GatewaySettings, SipSettings

TEMPLATES = Path(__file__).parent / "templates"
COMMAND = "callyard render asterisk"
MODE = 0o640
"""manager.conf holds a secret; the directory's group (Asterisk's) may read."""
_SECRET = re.compile(r"^([-+ ]\s*(?:secret|password)\s*=).*$", re.MULTILINE)

# As callyard.records.SIP_URI_PATTERN, in what POSIX and a function's argument in the dialplan allow.
URI_PATTERN = r"^sips?:[A-Za-z0-9._+-]+@[][A-Za-z0-9:.-]+(;transport=(udp|tcp|tls))?$"


class ValueRefusedError(ValueError):
    """A setting holds what would break out of its line in a configuration file."""


def _finalize(value: Any) -> str:
    text = str(value)
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in text):
        raise ValueRefusedError(f"a value for Asterisk's configuration holds a control character: {text!r:.60}")
    # A semicolon begins a comment (";--" even one over many lines) unless it is escaped: Asterisk's config parser.
    return text.replace(";", "\\;")


def _secret(value: str, variable: str) -> str:
    # Asterisk strips blanks around a value, and keeps backslashes before anything but a semicolon.
    if value != value.strip() or value.endswith("\\") or "\\;" in value:
        raise ValueRefusedError(f"{variable}: Asterisk cannot hold a secret with blanks at its ends or '\\;'")
    return value


JOINED = {
    "extensions_callyard.conf": "extensions_callyard.conf",
    "pjsip_callyard.conf": "pjsip_callyard.conf",
    "manager_callyard.conf": "manager_callyard.conf",
    "acl_callyard.conf": "acl.conf",
    "musiconhold_callyard.conf": "musiconhold.conf",
    "res_parking_callyard.conf": "res_parking.conf",
}
"""What an Asterisk of one's own includes: the file's name, and the template's."""


def names(*, join: bool = False) -> list[str]:
    """The names of all files of the set, or of those that an Asterisk of one's own includes; sorted."""
    return sorted(JOINED) if join else sorted(path.name.removesuffix(".j2") for path in TEMPLATES.glob("*.conf.j2"))


def render(
    settings: AsteriskSettings, ami: AmiSettings, sip: SipSettings | None = None, nodes: str | None = None, *,
    join: bool = False,
) -> dict[str, str]:  # fmt: skip
    """All files of the set: name and content; with ``join``, those that an Asterisk of one's own includes.

    Raises `ValueRefusedError` for a value that no file can hold, or that would open the manager interface to a network.
    """
    sip = sip or SipSettings()
    if not join:
        _check_manager(ami)
    environment = _environment(TEMPLATES)
    values = {
        **settings.model_dump(),
        **_sip_values(sip),
        "ami": ami,
        "ami_secret": _secret(ami.secret.get_secret_value(), ami.variable("secret")),
        "trunks": settings.trunk_networks.split(","),
        "permitted": _permitted(settings, nodes),
        "uri_pattern": URI_PATTERN,
        **dialogue(settings),
        "managers": settings.manager_networks.split(","),
    }
    templates = JOINED if join else {name: name for name in names()}
    bodies = {name: environment.get_template(f"{of}.j2").render(values) for name, of in templates.items()}
    return {name: sealed(body, SEMICOLON, COMMAND) for name, body in bodies.items()}


def owned(files: Mapping[str, str]) -> Rendered:
    """These rendered files as they are written: Asterisk reads as a user of its own, whose group the directory has."""
    return Rendered(COMMAND, files, dict.fromkeys(files, SEMICOLON), mode=MODE, group=True, secret=_SECRET)


@functools.cache
def _environment(templates: Path) -> Environment:
    return Environment(
        loader=FileSystemLoader(templates), undefined=StrictUndefined, finalize=_finalize, keep_trailing_newline=True,
        trim_blocks=True, lstrip_blocks=True, autoescape=False,  # noqa: S701 - not HTML; _finalize guards the values
    )  # fmt: skip


def _check_manager(ami: AmiSettings) -> None:
    # Who reads the secret on the wire can redirect and hang up every call.
    if not ami.tls and not ami.is_loopback:
        raise ValueRefusedError(
            f"CALLYARD_AMI_HOST is {ami.host}, which is not loopback: set CALLYARD_AMI_TLS (with certificates), or"
            " CALLYARD_AMI_BIND to a loopback address"
        )
    if ami.tls and not (ami.tls_server_certfile and ami.tls_server_keyfile):
        raise ValueRefusedError("CALLYARD_AMI_TLS needs CALLYARD_AMI_TLS_SERVER_CERTFILE and …_KEYFILE")
    try:
        ipaddress.ip_address(ami.serves_on)
    except ValueError:
        raise ValueRefusedError(
            f"CALLYARD_AMI_HOST is the name {ami.host}: say by CALLYARD_AMI_BIND on which address Asterisk serves it"
        ) from None
    if ami.tls and (ami.serves_on, ami.port) in {(any_, ami.tls_plain_port) for any_ in _MEETS_LOOPBACK}:
        raise ValueRefusedError(f"CALLYARD_AMI_PORT and CALLYARD_AMI_TLS_PLAIN_PORT are both {ami.port}")


_MEETS_LOOPBACK = ("127.0.0.1", "0.0.0.0", "::")  # noqa: S104 - only compared


def _sip_values(sip: SipSettings) -> dict[str, object]:
    password = "" if sip.trunk_password is None else sip.trunk_password.get_secret_value()
    # Its own endpoint: SDES keys must not go to a node that is called without TLS.
    secure = [] if sip.node_srtp == "off" else [("callyard-node-tls", sip.node_srtp)]
    choice = '${IF($["${CALLYARD_URI:-14}" = ";transport=tls"]?callyard-node-tls:callyard-node)}'
    return {
        "sip": sip,
        "transports": [name for name in ("udp", "tcp", "tls") if name in sip.transports.split(",")],
        "trunk_password": _secret(password, sip.variable("trunk_password")),
        "trunk_parameter": "" if sip.trunk_transport in {"any", "udp"} else f";transport={sip.trunk_transport}",
        "node_endpoints": [("callyard-node", "off"), *secure],
        "node_endpoint": choice if secure else "callyard-node",
    }


def _permitted(settings: AsteriskSettings, nodes: str | None) -> list[str] | None:
    """Whose SIP requests are looked at: the trunk's, the nodes', and a registrar's by its own answers; None: all."""
    allowed = AllowedNodes(GatewaySettings.model_fields["nodes"].default if nodes is None else nodes)
    if allowed.any:
        return None
    return list(dict.fromkeys([*settings.trunk_networks.split(","), *map(str, allowed.networks)]))
