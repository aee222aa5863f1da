"""Renders the gateway's Asterisk configuration from settings: values in, files out; it does no IO but read templates.

No setting can break out of its line: each is checked by its group's pattern when settings are read, and `_finalize`
refuses what could end a line or begin a comment, whatever the templates put it into. A name that a template doesn't
know is an error (StrictUndefined), never an empty string.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ast_config.dialogue import dialogue
from callyard.settings import AmiSettings, AsteriskSettings

TEMPLATES = Path(__file__).parent / "templates"
DIGEST = "; callyard-digest: "
HEADER = """\
; Rendered by 'callyard render asterisk'. Change Callyard's settings instead of this file: it isn't overwritten once
; it was edited by hand.
"""


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


def _secret(value: str) -> str:
    # Asterisk strips blanks around a value, and keeps backslashes before anything but a semicolon.
    if value != value.strip() or value.endswith("\\") or "\\;" in value:
        raise ValueRefusedError("CALLYARD_AMI_SECRET: Asterisk cannot hold a secret with blanks at its ends or '\\;'")
    return value


@lru_cache
def _environment(templates: Path) -> Environment:
    # Kept, with the templates that it has compiled.
    return Environment(
        loader=FileSystemLoader(templates), undefined=StrictUndefined, finalize=_finalize, keep_trailing_newline=True,
        trim_blocks=True, lstrip_blocks=True, autoescape=False,  # noqa: S701 - not HTML; _finalize guards the values
    )  # fmt: skip


def names() -> list[str]:
    """The names of all files of the set, sorted."""
    return sorted(path.name.removesuffix(".j2") for path in TEMPLATES.glob("*.conf.j2"))


def render(settings: AsteriskSettings, ami: AmiSettings) -> dict[str, str]:
    """All files of the set: name and content. Raises `ValueRefusedError` for a value that no file can hold."""
    environment = _environment(TEMPLATES)
    values = {
        **settings.model_dump(),
        "ami_host": ami.host,
        "ami_port": ami.port,
        "ami_username": ami.username,
        "ami_secret": _secret(ami.secret.get_secret_value()),
        "trunks": settings.trunk_networks.split(","),
        "uri_pattern": URI_PATTERN,
        **dialogue(settings),
        "managers": settings.manager_networks.split(","),
    }
    return {name: sealed(environment.get_template(f"{name}.j2").render(values)) for name in names()}


def sealed(body: str) -> str:
    """A file's content with the header that says it is rendered, and from what: the digest of what follows it."""
    return f"{HEADER}{DIGEST}{hashlib.sha256(body.encode()).hexdigest()}\n{body}"


def is_ours(content: str) -> bool:
    """Whether this content was rendered, and not changed since."""
    head, _, rest = content.partition(DIGEST)
    digest, newline, body = rest.partition("\n")
    return bool(newline) and not head.replace(HEADER, "") and sealed(body).endswith(f"{DIGEST}{digest}\n{body}")
