"""A gateway that drains, on the real Asterisk: no new calls, and nobody who is there loses anything."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from callyard.parts import asterisk, sipp
from tests.support.asterisk import conference_number, connected, parked, problems

pytestmark = pytest.mark.asterisk


async def called(gateway: asterisk.Gateway) -> str:
    """Call the gateway as a provider does; returns the status line of the final answer."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.bind((gateway.sip_host, 0))
        here, there = f"{gateway.sip_host}:{sender.getsockname()[1]}", f"{gateway.sip_host}:{gateway.sip_port}"

        def request(method: str, to: str, body: str = "") -> bytes:
            return "\r\n".join([
                f"{method} sip:4930111@{there} SIP/2.0", f"Via: SIP/2.0/UDP {here};branch=z9hG4bK-drain",
                f"From: <sip:49301@{here}>;tag=1", f"To: {to}", "Call-ID: drain", f"CSeq: 1 {method}",
                f"Contact: <sip:49301@{here}>", "Max-Forwards: 70", "Content-Type: application/sdp",
                f"Content-Length: {len(body)}", "", body,
            ]).encode()  # fmt: skip

        sdp = (
            f"v=0\r\no=- 1 1 IN IP4 {gateway.sip_host}\r\ns=-\r\nc=IN IP4 {gateway.sip_host}\r\nt=0 0\r\n"
            "m=audio 40000 RTP/AVP 0\r\n"
        )
        sender.connect((gateway.sip_host, gateway.sip_port))
        await loop.sock_sendall(sender, request("INVITE", f"<sip:4930111@{there}>", sdp))
        while True:
            answer = (await asyncio.wait_for(loop.sock_recv(sender, 8192), 10)).decode()
            status = answer.splitlines()[0]
            if not status.startswith("SIP/2.0 1"):
                to = next(line.partition(":")[2].strip() for line in answer.splitlines() if line.startswith("To:"))
                await loop.sock_sendall(sender, request("ACK", to))
                return status


async def test_draining_gateway_takes_no_new_calls_and_puts_through_who_waits(tmp_path: Path) -> None:
    number = conference_number()
    async with (
        asterisk.running(tmp_path / "gateway") as gateway,
        connected(gateway.ami) as client,
        sipp.node(tmp_path / "node") as node,
        parked(gateway, client, tmp_path, number) as (callers, event),
    ):
        assert "1 active channel" in await gateway.cli("core show channels count")
        await gateway.cli("dialplan set global CALLYARD_DRAINING yes")
        assert await called(gateway) == "SIP/2.0 503 Service Unavailable"
        await client.redirect(event.channel, "1x1", node.uri(number))
        assert [call.conference for call in await node.saw("answered")] == [number]
        assert callers.talking()
        await callers.hang_up()
        await client.event("Hangup", CALLYARD_CONFERENCE=number)
        await node.saw("ended")
        assert list(problems(gateway.log())) == []
