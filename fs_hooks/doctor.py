"""What ``callyard doctor node`` looks at. It changes nothing: not at FreeSWITCH, not at Kafka."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from functools import partial
from xml.etree import ElementTree as ET

from callyard import doctor_checks
from callyard.doctor import Check, Finding, Findings, examine, tell
from callyard.records import split_sip_uri
from callyard.settings import EslSettings, FreeswitchSettings, KafkaSettings, Loaded, NodeSettings
from fs_hooks import esl
from fs_hooks.client import CommandRefusedError, EslError, Link, connect
from fs_hooks.conferences import MAINTENANCE, Conferences, SnapshotError
from fs_hooks.render import EXTENSIONS, dialplan
from fs_hooks.vouching import PREFIX

TEST_BRIDGE = "99999"
CLOCK_SECONDS = 2
"""More than FreeSWITCH's clock may differ from this machine's: an entry that vouches holds by both."""
PROBE_SECONDS = 3.0
HARMLESS = frozenset({"unloop", "outside_call"})
"""Extensions that BigBlueButton has before all others, and that take no gateway's call (conf/dialplan/public.xml)."""

ALLOW = "allow it to the user of the event socket, or use its own password (event_socket.conf.xml)"
RENDER = "run 'callyard render freeswitch', its apply.sh, and then fs_clibbb -x reloadxml"


def run(loaded: Loaded, *, json: bool) -> int:
    """Look at all of it and print it; returns the exit status."""
    node, settings, kafka = loaded[NodeSettings], loaded[FreeswitchSettings], loaded[KafkaSettings]
    checks = [
        Check("numbers", partial(numbers, node)),
        Check("address", partial(address, node)),
        Check("event socket", partial(freeswitch, loaded[EslSettings], settings, node)),
        Check("clock", doctor_checks.kernel_clock),
        Check("kafka", partial(doctor_checks.bus, kafka, "node")),
    ]
    return tell(asyncio.run(examine(checks)), json=json)


async def numbers(node: NodeSettings) -> list[Finding]:
    """BigBlueButton's test bridge must not be a conference that callers reach."""
    found = Findings("numbers")
    if node.excluded.fullmatch(TEST_BRIDGE):
        found.fine(f"{TEST_BRIDGE}, BigBlueButton's test bridge, is left out")
    else:
        found.wrong(
            f"{TEST_BRIDGE}, BigBlueButton's test bridge, would be registered", "add it to CALLYARD_NODE_EXCLUDE"
        )
    return found.all


async def address(node: NodeSettings) -> list[Finding]:
    """The URI that gateways are given: one that they can reach, as far as that shows from here."""
    found = Findings("address")
    host, port, transport = _target(node.uri_of("49123"))
    try:
        known = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        found.wrong(f"{host} has no address here: {error}", "CALLYARD_NODE_SIP_URI must name one that gateways reach")
        return found.all
    addresses = sorted({str(entry[4][0]) for entry in known})
    local = [a for a in addresses if (ip := ipaddress.ip_address(a)).is_loopback or ip.is_unspecified]
    if local:
        found.wrong(
            f"{host} is {', '.join(local)}: gateways would dial themselves",
            "put the address that gateways reach into CALLYARD_NODE_SIP_URI",
        )
    else:
        found.fine(f"gateways are told {node.uri_of('49123')}")
    if transport == "udp":
        found.warn("SIP over UDP isn't tried from here", "try it from a gateway; ;transport=tcp can be tried")
        return found.all
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), PROBE_SECONDS)
    except (OSError, asyncio.TimeoutError) as error:
        found.wrong(
            f"nothing takes SIP connections at {host}:{port} ({error or 'no answer'})",
            "check the port in CALLYARD_NODE_SIP_URI, FreeSWITCH's profile (sofia status), and the firewall",
        )
    else:
        writer.close()
        found.fine(f"{host}:{port} takes connections (from this machine; the firewall may still refuse gateways)")
    return found.all


def _target(uri: str) -> tuple[str, int, str]:
    _, host, port, transport = split_sip_uri(uri)
    transport = transport or ("tls" if uri.startswith("sips:") else "udp")
    return host.strip("[]"), port or (5061 if transport == "tls" else 5060), transport


async def freeswitch(esl_settings: EslSettings, settings: FreeswitchSettings, node: NodeSettings) -> list[Finding]:
    """All that is asked of FreeSWITCH, over one connection."""
    found = Findings("event socket")

    def ignore(_frame: esl.Event | esl.UnknownFrame | esl.Unreadable) -> None:
        pass

    try:
        async with connect(esl_settings, ignore) as link:
            found.fine(f"FreeSWITCH at {esl_settings.host}:{esl_settings.port} takes the password")
            if esl_settings.password.get_secret_value() == "ClueCon":
                found.wrong("its password is FreeSWITCH's well-known default", "change it in event_socket.conf.xml")
            await link.command("event", esl_settings.event_format, "CUSTOM", MAINTENANCE)
            found.fine(f"{MAINTENANCE} may be subscribed to")
            conferences = Conferences()
            listed = conferences.snapshot(conferences.ask(), await link.api("conference", "json_list"), 0)
            found.fine(f"conference json_list can be read: {len(listed)} conferences")
            found.all.extend(await _vouching(link))
            found.all.extend(await _gateways(link, settings))
            found.all.extend(await _dialplan(link, settings, node))
    except CommandRefusedError as error:
        found.wrong(str(error), ALLOW)
    except SnapshotError as error:
        found.wrong(str(error), "FreeSWITCH 1.6 or later is needed, with mod_conference")
    except EslError as error:
        found.wrong(str(error), "the hook can do nothing until then; what needs FreeSWITCH was not looked at")
    return found.all


async def _vouching(link: Link) -> list[Finding]:
    found = Findings("vouching")
    answers = {
        "cond": await link.api("cond", "1 < 2 ? yes : no"),
        "strepoch": await link.api("strepoch"),
        "global_getvar": await link.api("global_getvar"),
    }
    now = answers["strepoch"].strip()
    if answers["cond"] != "yes" or not now.isdecimal() or answers["global_getvar"].startswith("-ERR"):
        found.wrong(
            f"FreeSWITCH doesn't compare or keep what vouches for meetings: {answers!r:.200}",
            "load mod_commands and mod_dptools (modules.conf.xml), as BigBlueButton does",
        )
        return found.all
    held = [line for line in answers["global_getvar"].splitlines() if line.startswith(PREFIX)]
    found.fine(f"FreeSWITCH can keep what vouches for meetings; it holds {len(held)} entries")
    if abs(int(now) - time.time()) > CLOCK_SECONDS:
        found.wrong(
            f"FreeSWITCH's clock differs by {int(now) - time.time():.0f} s from this machine's",
            "run 'fsctl sync_clock' in fs_cli, and keep the clock by NTP",
        )
    return found.all


async def _gateways(link: Link, settings: FreeswitchSettings) -> list[Finding]:
    found = Findings("acl")
    for version in (4, 6):
        networks = [n for n in map(ipaddress.ip_network, settings.gateways.split(",")) if n.version == version]
        listed = ",".join(str(network) for network in networks)
        refused = [
            str(network.network_address)
            for network in networks
            if await link.api("acl", str(network.network_address), listed) != "true"
        ]
        if refused:
            found.wrong(
                f"FreeSWITCH doesn't find {', '.join(refused)} in the networks of CALLYARD_FREESWITCH_GATEWAYS",
                "check FreeSWITCH's version (1.10 is known to read networks that are written out)",
            )
    if not found.all:
        found.fine(f"gateways are known by their addresses: {settings.gateways}")
    return found.all


async def _dialplan(link: Link, settings: FreeswitchSettings, node: NodeSettings) -> list[Finding]:
    found = Findings("dialplan")
    answer = await link.api("xml_locate", "dialplan", "context", "name", "public")
    try:
        extensions = list(ET.fromstring(answer).iter("extension"))  # noqa: S314 - what FreeSWITCH runs by, from itself
    except ET.ParseError:
        found.wrong(f"FreeSWITCH has no context 'public' loaded: {answer!r:.80}", RENDER)
        return found.all
    loaded = {extension.get("name", ""): extension for extension in extensions}
    missing = [name for name in EXTENSIONS if name not in loaded]
    if missing:
        found.wrong("the dialplan for gateways isn't loaded: every call of theirs is refused", RENDER)
        return found.all
    wanted = {extension.get("name"): extension for extension in ET.fromstring(dialplan(settings, node.exclude))}  # noqa: S314
    if any(_form(loaded[name]) != _form(wanted[name]) for name in EXTENSIONS):
        found.wrong("the dialplan that is loaded isn't the one that these settings render", RENDER)
    names = [extension.get("name", "") for extension in extensions]
    if names.index(EXTENSIONS[0]) > names.index(EXTENSIONS[1]):
        found.wrong("the refusing extension stands first: every gateway's call is refused", RENDER)
    before = [name for name in names[: names.index(EXTENSIONS[0])] if name not in HARMLESS]
    if before:
        found.warn(
            f"extensions stand before Callyard's, and may take gateways' calls: {', '.join(before)}",
            "see that they don't, or name their files so that they come after 00_callyard.xml",
        )
    if not found.all:
        found.fine("loaded, and as these settings render it")
    return found.all


def _form(element: ET.Element) -> tuple[object, ...]:
    # Comments and blanks don't come back from FreeSWITCH.
    children = [child for child in element if isinstance(child.tag, str)]
    return element.tag, tuple(sorted(element.attrib.items())), tuple(_form(child) for child in children)
