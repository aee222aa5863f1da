"""Free ports on the loopback address."""

from __future__ import annotations

import socket

from callyard.processes import free_port


def free_ports(count: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> list[int]:
    """Different free ports: all are held while the next one is sought."""
    held = [socket.socket(socket.AF_INET, kind) for _ in range(count)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in held]
    finally:
        for one in held:
            one.close()


__all__ = ["free_port", "free_ports"]
