"""What FreeSWITCH's ``api`` commands answer, those that Callyard uses: for the double, and for tests of the dialplan.

Written after the sources of FreeSWITCH (signalwire/freeswitch): ``global_setvar``, ``global_getvar``, ``cond``,
``acl`` and ``xml_locate`` in mod_commands.c, ``strepoch`` in mod_dptools.c, ``conference`` in conference_api.c and
mod_conference.c, and the functions of the core that they call. It must never be kinder than those: what they answer to
a wrong question, this does, too. What isn't here isn't known, and answers as an unknown command does.
"""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Callable
from xml.etree import ElementTree as ET

CORE_VARIABLES = {"hostname": "double"}
"""Of the global variables that the core itself sets at its start (switch_core.c), one: there is always some."""


class Api:
    """The state that the commands read and write, and the commands."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.variables: dict[str, str] = dict(CORE_VARIABLES)
        """Global variables."""
        self.counts: Callable[[], dict[str, int]] = dict
        """The conferences by name, with their members' count."""
        self.dialplan: str | None = None
        """The context ``public`` as FreeSWITCH has it loaded, as XML; None: there is none."""
        self.clock = clock
        self._commands: dict[str, Callable[[str], str]] = {
            "global_setvar": self._global_setvar,
            "global_getvar": self._global_getvar,
            "cond": cond,
            "acl": _acl,
            "strepoch": self._strepoch,
            "conference": self._conference,
            "xml_locate": self._xml_locate,
        }

    def execute(self, name: str, arguments: str) -> str | None:
        """The answer of a command; None: there is no such command."""
        command = self._commands.get(name)
        return None if command is None else command(arguments)

    def _global_setvar(self, arguments: str) -> str:
        # switch_separate_string: at most three parts, blanks around each taken off.
        name, *values = (part.strip() for part in arguments.split("=", 2))
        if not name:
            return "-USAGE: <var>=<value> [=<value2>]\n"
        value, condition, *_ = (*values, "", "")
        # switch_core_set_var_conditional: set only where it has that value.
        if condition and self.variables.get(name, "") != condition:
            return "+OK"
        if value:
            # switch_string_var_check takes the dollar out of what could be expanded.
            self.variables[name] = value.replace("${", "{")
        else:
            self.variables.pop(name, None)
        return "+OK"

    def _global_getvar(self, arguments: str) -> str:
        if not arguments:
            return "".join(f"{name}={value}\n" for name, value in self.variables.items())
        return self.variables.get(arguments, "")

    def _strepoch(self, arguments: str) -> str:
        if arguments:
            raise ValueError(f"this double answers strepoch of now only, not of {arguments!r}")
        return str(int(self.clock()))

    def _conference(self, arguments: str) -> str:
        words = arguments.split()
        counts = self.counts()
        if len(words) == 3 and words[1:] == ["list", "count"]:
            if words[0] in counts:
                return str(counts[words[0]])
            return f"-ERR Conference {words[0]} not found\n"
        raise ValueError(f"this double answers 'conference NAME list count' only, not {arguments!r}")

    def _xml_locate(self, arguments: str) -> str:
        words = arguments.split()
        if len(words) not in {1, 4}:
            return "-ERR bad args\n"
        if words == ["dialplan", "context", "name", "public"] and self.dialplan is not None:
            # Read and written anew, as switch_xml_toxml does it: without comments.
            return ET.tostring(ET.fromstring(self.dialplan), encoding="unicode")  # noqa: S314 - a test's own
        return "can't find anything\n"


def _is_number(text: str) -> bool:
    # switch_is_number: an empty text is one, and so is one of dots.
    return re.fullmatch(r"[-+]?[0-9.]*", text) is not None


def _number(text: str) -> float:
    found = re.match(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)", text)
    return float(found[0]) if found else 0.0  # atof


def cond(arguments: str) -> str:
    """``cond A < B ? YES : NO`` of mod_commands.c, without its quoted operands."""
    parts = re.fullmatch(r"([^ ]*) +(<=|>=|==|!=|<|>)(.*)", arguments, re.DOTALL)
    if parts is None or "'" in arguments:
        return "-ERR"
    a, operator, rest = parts[1], parts[2], parts[3]
    # One character is skipped after the operator, whatever it is; then blanks.
    b, blank, rest = rest[1:].lstrip(" ").partition(" ")
    rest = rest.lstrip(" ")
    if not blank or not rest.startswith("?"):
        return "-ERR"
    answers = [part.strip() for part in rest[1:].split(":", 1)]
    x = _number(a) if _is_number(a) else float(len(a))
    y = _number(b) if _is_number(b) else float(len(b))
    texts = not _is_number(a) and not _is_number(b)
    holds = {
        "<": x < y, "<=": x <= y, ">": x > y, ">=": x >= y,
        "==": a == b if texts else x == y, "!=": a != b if texts else x != y,
    }[operator]  # fmt: skip
    return answers[0] if holds else answers[1] if len(answers) > 1 else ""


def _acl(arguments: str) -> str:
    words = arguments.split(" ")
    if len(words) < 2 or "/" not in words[1]:
        return "false"  # a list's name: this has no lists
    address, networks = words[0], words[1].split(",")
    try:
        wanted = _bits(address)
    except ValueError:
        return "false"
    return "true" if any(_matches(wanted, ":" in address, network) for network in networks) else "false"


def _bits(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def _matches(address: bytes, is_v6: bool, network: str) -> bool:
    """As switch_test_subnet and switch_testv6_subnet on the union ``ip_t``: an address isn't asked of what kind it is.

    So an IPv4 address is compared with the beginning of an IPv6 network. (Of the order of the bytes in the union only
    so much is kept that such a network can match at all.)
    """
    parsed = ipaddress.ip_network(network, strict=False)
    size = 16 if is_v6 else 4
    net = parsed.network_address.packed.ljust(16, b"\0")[:size]
    mask = parsed.netmask.packed.ljust(16, b"\0")[:size]
    return all(a & m == n & m for a, n, m in zip(address.ljust(size, b"\0"), net, mask, strict=True))
