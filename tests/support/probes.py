"""What a worker answers on its health port."""

from __future__ import annotations

import asyncio


async def probe(port: int, path: str) -> tuple[int, str]:
    """The status and the body of one GET."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        head, _, body = (await asyncio.wait_for(reader.read(), 10)).decode().partition("\r\n\r\n")
    finally:
        writer.close()
    return int(head.split(" ")[1]), body


async def metric(port: int, series: str) -> float | None:
    """One series of /metrics, labels and all; None where it isn't there."""
    status, body = await probe(port, "/metrics")
    assert status == 200, body
    found = [line.removeprefix(f"{series} ") for line in body.splitlines() if line.startswith(f"{series} ")]
    return float(found[0]) if found else None
