r"""Renders the node's side of dialling in: FreeSWITCH's dialplan for the gateways, and BigBlueButton's properties.

Values in, files out; no IO. The XML is built as a tree, never by putting texts together, so that no setting can break
out of its attribute; `render` reads it again before it gives it out.

What the dialplan relies on, by file of the sources (bigbluebutton/bigbluebutton, signalwire/freeswitch):

* Calls from outside come into the context ``public`` (conf/sip_profiles/external.xml), which includes
  ``public/*.xml`` in the order of the names (conf/dialplan/public.xml): ours is the first. BigBlueButton's package
  doesn't own a file of that name, so upgrades leave it; ``apply.sh`` puts it back where it is missing.
* ``default/bbb_conference.xml`` lets a call with 5 to 11 digits into the conference once ``bbb_authorized`` is set. It
  rejects a caller without number, without name, or with an anonymous one: ours has both, always.
* BigBlueButton takes who is named ``…-bbbID-…`` for the user of that id in the browser (bbb-fsesl-client,
  ESLEventListener). So the name is made from the digits of the number alone; no text of the caller's gets through.
* ``conference NUMBER list count`` answers a bare count, or ``-ERR Conference … not found`` (mod_conference,
  conference_api.c). Only a count lets in, so that an answer of another form refuses.
* The networks of the gateways stand in the dialplan itself: ``acl`` takes written-out networks in place of a list's
  name (switch_core.c, switch_check_network_list_ip_port_token). A list in acl.conf.xml would be lost with the next
  upgrade. IPv4 and IPv6 are asked for apart: that function compares an address of one kind with networks of the other.
* ``$1`` in an action is what its own condition's expression matched (mod_dialplan_xml.c). ``\z`` and not ``$``, which
  would also match before a line feed at the end.
"""

from __future__ import annotations

import ipaddress
import re
from importlib import resources
from xml.etree import ElementTree as ET

from callyard.owned_files import HASH, XML, Rendered, sealed
from callyard.settings import FreeswitchSettings, NodeSettings
from fs_hooks.vouching import PREFIX

COMMAND = "callyard render freeswitch"
DIALPLAN = "00_callyard.xml"
PROPERTIES = "bbb-web.properties"
SCRIPT = "apply.sh"
EXTENSIONS = ("callyard_conference", "callyard_refused")
"""The names of our extensions, in their order."""


def render(settings: FreeswitchSettings, node: NodeSettings) -> Rendered:
    """All files of the set, sealed."""
    bodies = {
        DIALPLAN: (dialplan(settings, node.exclude), XML),
        PROPERTIES: (properties(settings), HASH),
        SCRIPT: (resources.files(__package__).joinpath(SCRIPT).read_text(encoding="utf-8"), HASH),
    }
    return Rendered(
        COMMAND,
        {name: sealed(body, comment, COMMAND) for name, (body, comment) in bodies.items()},
        {name: comment for name, (_, comment) in bodies.items()},
    )


def dialplan(settings: FreeswitchSettings, exclude: str) -> str:
    """The dialplan as XML without its seal. Numbers of the setting ``exclude`` are refused whatever runs there."""
    root = ET.Element("include")
    root.append(ET.Comment(" Calls of the gateways, known by their address alone, and nobody else's. "))
    root.append(_let_in(settings, exclude))
    root.append(ET.Comment(" A gateway's call that wasn't let in ends here; no later extension sees it. "))
    root.append(_refused(settings))
    ET.indent(root, "  ")
    text = ET.tostring(root, encoding="unicode") + "\n"
    again = ET.fromstring(text)  # noqa: S314 - our own, just made
    if [extension.get("name") for extension in again] != list(EXTENSIONS):
        raise AssertionError("the dialplan does not read as it was written")
    return text


def _let_in(settings: FreeswitchSettings, exclude: str) -> ET.Element:
    extension = ET.Element("extension", name=EXTENSIONS[0])
    extension.append(_from_gateway(settings))
    # Digits, and * and ? where patterns are taken; anything else could never be a number.
    left_out = sorted({word.strip() for word in exclude.split(",")})
    patterns = [
        word.replace("*", "[0-9]*").replace("?", "[0-9]") for word in left_out if re.fullmatch("[0-9*?]+", word)
    ]
    refused = "".join(rf"(?!{pattern}\z)" for pattern in patterns)
    _condition(extension, "destination_number", rf"^{refused}\d{{5,11}}\z")
    there = ET.SubElement(extension, "condition", regex="any")
    there.append(ET.Comment(" A conference runs, or the hook vouches for a meeting until then. "))
    ET.SubElement(there, "regex", field="${conference(${destination_number} list count)}", expression=r"^\d+\z")
    vouched = f"${{global_getvar({PREFIX}${{destination_number}})}}"
    ET.SubElement(
        there, "regex", field=f"${{cond(${{strepoch()}} < {vouched} ? vouched : not)}}", expression=r"^vouched\z"
    )
    _action(there, "set", "bbb_authorized=true")
    if settings.media_timeout_seconds:
        _action(there, "set", f"media_timeout={settings.media_timeout_seconds}")
    extension.append(_caller(settings))
    last = ET.SubElement(extension, "condition")
    _action(last, "transfer", "${destination_number} XML default")
    return extension


def _refused(settings: FreeswitchSettings) -> ET.Element:
    extension = ET.Element("extension", name=EXTENSIONS[1])
    gateway = _from_gateway(settings)
    _action(gateway, "respond", "404 Not Found")
    extension.append(gateway)
    return extension


def _from_gateway(settings: FreeswitchSettings) -> ET.Element:
    networks = [ipaddress.ip_network(network) for network in settings.gateways.split(",")]
    condition = ET.Element("condition", regex="any")
    for version, form in ((4, "[0-9.]"), (6, "[0-9A-Fa-f:]")):
        listed = ",".join(str(network) for network in networks if network.version == version)
        if listed:
            ET.SubElement(
                condition,
                "regex",
                field=f"${{network_addr}} ${{acl(${{network_addr}} {listed})}}",
                expression=rf"^{form}+ true\z",
            )
    return condition


def _caller(settings: FreeswitchSettings) -> ET.Element:
    # The number shown, and the name shown: what BigBlueButton rejects (empty, anonymous) can't come out of this.
    form = {
        "masked": r"^(\+?[0-9]{0,20})[0-9x]{3}\z",
        "full": r"^(\+?[0-9]{1,20}x{0,3})\z",
        "none": "",
    }[settings.caller]
    tail = "xxx" if settings.caller == "masked" else ""
    shown = ("caller_id_name", "caller_id_number")
    if not form:
        condition = ET.Element("condition")
        for variable in shown:
            _action(condition, "set_profile_var", f"{variable}={settings.unknown_caller}")
        return condition
    condition = ET.Element("condition", {"field": "caller_id_number", "expression": form, "break": "never"})
    for variable in shown:
        _action(condition, "set_profile_var", f"{variable}=$1{tail}")
    for variable in shown:
        ET.SubElement(
            condition, "anti-action", application="set_profile_var", data=f"{variable}={settings.unknown_caller}"
        )
    return condition


def _condition(parent: ET.Element, field: str, expression: str) -> None:
    ET.SubElement(parent, "condition", field=field, expression=expression)


def _action(parent: ET.Element, application: str, data: str) -> None:
    ET.SubElement(parent, "action", application=application, data=data)


def properties(settings: FreeswitchSettings) -> str:
    """What is to stand in /etc/bigbluebutton/bbb-web.properties, which wins over the package's own properties."""
    if not settings.dial_number:
        return "# CALLYARD_FREESWITCH_DIAL_NUMBER is not set: BigBlueButton shows what it is configured to.\n"
    values = {"defaultDialAccessNumber": settings.dial_number, "defaultWelcomeMessageFooter": settings.welcome_footer}
    return "".join(f"{name}={_property(value)}\n" for name, value in values.items() if value)


def _property(value: str) -> str:
    # A backslash begins an escape, and the file is read as ISO 8859-1 (java.util.Properties).
    units = value.replace("\\", "\\\\").encode("utf-16-be")
    codes = [int.from_bytes(units[i : i + 2], "big") for i in range(0, len(units), 2)]
    return "".join(chr(code) if 0x20 <= code < 0x7F else f"\\u{code:04x}" for code in codes)
