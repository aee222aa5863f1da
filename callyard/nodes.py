"""Which nodes callers may be sent to: a list of names, addresses and networks, and whether a host is in it.

Pure: nothing is looked up. A host that is a name is in the list only if the list has that name: what it resolves to
may change between the look and the call.
"""

from __future__ import annotations

import functools
import ipaddress
import re

ANY = "any"
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class AllowedNodes:
    """A list of nodes, comma-separated: names, addresses, networks; ``any`` allows every host, empty none.

    Raises `ValueError`, naming the entry, where one is none of these.
    """

    def __init__(self, text: str) -> None:
        names, networks = set(), []
        for entry in (part.strip().lower() for part in text.split(",")):
            network = _network(entry)
            if network is not None:
                networks.append(network)
            elif entry and not _looks_like_address(entry) and _NAME.fullmatch(entry):
                names.add(entry)
            elif entry:
                raise ValueError(f"{entry!r:.60} is neither a name nor an address nor a network (of no host bits)")
        self.any = ANY in names
        self.names = frozenset(names - {ANY})
        self.networks: tuple[Network, ...] = tuple(networks)

    def allows(self, host: str) -> bool:
        """Whether the host of a SIP URI (IPv6 in brackets) is in the list."""
        bare = host.strip("[]").lower()
        try:
            address = ipaddress.ip_address(bare)
        except ValueError:
            return self.any or bare.rstrip(".") in self.names
        return self.any or any(address in network for network in self.networks)


@functools.lru_cache(maxsize=64)
def allowed_nodes(text: str) -> AllowedNodes:
    """The list that this text is, made once. Raises `ValueError` as `AllowedNodes` does."""
    return AllowedNodes(text)


def _network(entry: str) -> Network | None:
    try:
        return ipaddress.ip_network(entry.strip("[]"))
    except ValueError:
        return None


def _looks_like_address(entry: str) -> bool:
    # "10.0.0.0/33" and "300.1.1.1" are misspelt addresses, and "10.1" is one to some programs: never names.
    return re.fullmatch(r"[0-9.]+|0x[0-9a-f]+|.*[/:].*", entry) is not None
