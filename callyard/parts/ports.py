"""Ports on loopback for private parts: free ones, and whether somebody listens (found out without connecting)."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Literal

from callyard.processes import ProcessError, free_port

LOOPBACK = "127.0.0.1"
_TCP_LISTEN, _UDP_UNCONNECTED = "0A", "07"


def free_sip_port() -> int:
    """A port that was free a moment ago both for UDP and for TCP."""
    for _ in range(100):
        port = free_port(LOOPBACK)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
        return port
    raise ProcessError("no port is free both for UDP and for TCP")


def is_served(port: int, transport: Literal["udp", "tcp"]) -> bool:
    """Whether a socket of this machine listens there: read from /proc/net, so that the program notices nothing."""
    state = _TCP_LISTEN if transport == "tcp" else _UDP_UNCONNECTED
    rows = Path("/proc/net", transport).read_text(encoding="ascii").splitlines()[1:]
    fields = [row.split() for row in rows]
    return any(int(row[1].rpartition(":")[2], 16) == port and row[3] == state for row in fields)
