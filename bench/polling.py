"""The polling dialplan that Callyard replaces, on an Asterisk of its own: how long a caller waits there.

A conference is an endpoint that registers by SIP when it opens (a REGISTER is written here, as a node would). The
caller's dialplan looks whether it is there, plays "waiting for the leader", waits eight seconds, and looks again.

An opening may come at any moment of that cycle. Here the openings are spread evenly over each caller's own cycle, in an
order drawn from a seeded generator: that is the whole distribution with few callers.
"""

from __future__ import annotations

import asyncio
import importlib
import itertools
import random
import secrets
import statistics
import time
from pathlib import Path
from typing import Any

from bench.ami import Message, connected
from bench.callers import CALLS_A_SECOND
from bench.figures import Spread
from callyard.errors import CommandError
from callyard.parts import asterisk, sipp
from callyard.parts.ports import LOOPBACK, free_sip_port
from callyard.processes import free_port
from callyard.settings import AmiSettings, AsteriskSettings

FIRST_NUMBER = 60_000
SEED = 20_260_101
LONGEST_CYCLE_SECONDS = 20.0
MODULES = (
    "app_chanisavail.so", "app_userevent.so", "res_pjsip_registrar.so", "res_pjsip_endpoint_identifier_user.so",
)  # fmt: skip
DIALPLAN = """\
[polling]
exten => _X!,1,Answer()
 same => n(look),ChanIsAvail(PJSIP/${EXTEN})
 same => n,GotoIf($["${AVAILORIGCHAN}" != ""]?there)
 same => n,UserEvent(Looked,Conference: ${EXTEN})
 same => n,Playback(conf-waitforleader)
 same => n,Wait(8)
 same => n,Goto(look)
 same => n(there),Dial(PJSIP/${EXTEN},10)
 same => n,Hangup()
"""
MANAGER = """\
[general]
enabled = yes
bindaddr = {host}
port = {port}

[{username}]
secret = {secret}
read = call,user
eventfilter(action(include),name(UserEvent)) =
eventfilter(action(include),name(DialBegin)) =
"""
PJSIP = """\
[global]
type = global
endpoint_identifier_order = username,ip

[udp]
type = transport
protocol = udp
bind = {host}:{port}

[caller]
type = endpoint
context = polling
disallow = all
allow = ulaw
media_address = {host}

[caller]
type = identify
endpoint = caller
match = {host}
"""
CONFERENCE = """
[{number}]
type = endpoint
aors = {number}
disallow = all
allow = ulaw
media_address = {host}

[{number}]
type = aor
max_contacts = 1
"""


class Watch:
    """What the callers' dialplan did, by conference. Times are nanoseconds since 1970-01-01 UTC."""

    def __init__(self) -> None:
        self.looked: dict[str, list[int]] = {}
        """When each caller looked in vain."""
        self.dialled: dict[str, int] = {}

    def take(self, message: Message) -> None:
        """Note one event."""
        if message["Event"] == "UserEvent" and message["UserEvent"] == "Looked":
            self.looked.setdefault(message["Conference"], []).append(message.at_ns)
        elif message["Event"] == "DialBegin":
            number = message["DestChannel"].removeprefix("PJSIP/").partition("-")[0]
            self.dialled.setdefault(number, message.at_ns)


async def polling(directory: Path, count: int) -> dict[str, Any]:
    """The polling dialplan with so many callers, a conference for each."""
    ami = AmiSettings(host=LOOPBACK, port=free_port(LOOPBACK), secret=secrets.token_hex(16))
    numbers = [str(FIRST_NUMBER + number) for number in range(count)]
    port = free_sip_port()
    watch = Watch()
    async with (
        asterisk.running(directory / "asterisk", ami=ami, files=_files(ami, port, numbers), sip_port=port) as gateway,
        sipp.node(directory / "node", transport="udp") as node,
        connected(ami, watch.take) as observer,
    ):
        calls = [sipp.Call(f"+4930{number}", "1", dials=number) for number in numbers]
        entrance = (gateway.sip_host, gateway.sip_port)
        async with sipp.calling(directory / "callers", entrance, calls, rate=CALLS_A_SECOND):
            await observer.until(
                lambda: len(watch.looked) == count and len(watch.looked[numbers[0]]) >= 2,
                count / CALLS_A_SECOND + 10 + LONGEST_CYCLE_SECONDS,
                lambda: f"{len(watch.looked)} of {count} polling callers look",
            )
            first, second = watch.looked[numbers[0]][:2]
            cycle_ns = second - first
            opened = await _open(entrance, node, _moments(watch, numbers, cycle_ns))
            await observer.until(
                lambda: len(watch.dialled) == count, LONGEST_CYCLE_SECONDS,
                lambda: f"{len(watch.dialled)} of {count} polling callers were dialled",
            )  # fmt: skip
    cycles = [(b - a) / 1e9 for looks in watch.looked.values() for a, b in itertools.pairwise(looks)]
    return {
        "total": Spread.of((watch.dialled[number] - opened[number]) / 1e6 for number in numbers),
        "cycle seconds": round(statistics.median(cycles), 2),
    }


def _files(ami: AmiSettings, port: int, numbers: list[str]) -> dict[str, str]:
    rendered: dict[str, str] = importlib.import_module("ast_config.render").render(AsteriskSettings(), ami)
    conferences = "".join(CONFERENCE.format(number=number, host=LOOPBACK) for number in numbers)
    return {
        "modules.conf": rendered["modules.conf"] + "".join(f"load = {name}\n" for name in MODULES),
        "extensions.conf": DIALPLAN,
        "pjsip.conf": PJSIP.format(host=LOOPBACK, port=port) + conferences,
        "manager.conf": MANAGER.format(
            host=ami.host, port=ami.port, username=ami.username, secret=ami.secret.get_secret_value()
        ),
    }


def _moments(watch: Watch, numbers: list[str], cycle_ns: int) -> list[tuple[int, str]]:
    """When each conference opens: the so-manyth part of its caller's next whole cycle."""
    shares = [(number + 0.5) / len(numbers) for number in range(len(numbers))]
    random.Random(SEED).shuffle(shares)
    now = time.time_ns()
    moments = []
    for number, share in zip(numbers, shares, strict=True):
        moment = watch.looked[number][-1] + round(share * cycle_ns)
        moments.append((moment if moment > now else moment + cycle_ns, number))
    return sorted(moments)


async def _open(entrance: tuple[str, int], node: sipp.Node, moments: list[tuple[int, str]]) -> dict[str, int]:
    """Register each conference at its moment; returns when that was."""
    loop = asyncio.get_running_loop()
    transport, registrar = await loop.create_datagram_endpoint(_Registrar, remote_addr=entrance)
    opened = {}
    try:
        for moment, number in moments:
            await asyncio.sleep(max(0.0, (moment - time.time_ns()) / 1e9))
            opened[number] = time.time_ns()
            registrar.register(number, entrance, node.uri(number))
        await asyncio.wait_for(registrar.accepted(len(moments)), 5)
    except asyncio.TimeoutError:
        raise CommandError(f"Asterisk did not accept all registrations: {registrar.answers}") from None
    finally:
        transport.close()
    return opened


class _Registrar(asyncio.DatagramProtocol):
    """Writes REGISTER requests (RFC 3261, section 10) and notes the answers."""

    def __init__(self) -> None:
        self.answers: dict[str, str] = {}
        """The status line of each answer, by Call-ID."""
        self._changed = asyncio.Event()
        self._transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def datagram_received(self, data: bytes, addr: object) -> None:  # noqa: ARG002 - asyncio's signature
        status, *headers = data.decode(errors="replace").split("\r\n")
        call_id = next((line.partition(": ")[2] for line in headers if line.startswith("Call-ID: ")), "")
        self.answers[call_id] = status
        self._changed.set()

    def register(self, number: str, registrar: tuple[str, int], contact: str) -> None:
        """Say that this number is at this URI."""
        host, port = self._transport.get_extra_info("sockname")
        name = f"<sip:{number}@{registrar[0]}>"
        lines = (
            f"REGISTER sip:{registrar[0]}:{registrar[1]} SIP/2.0",
            f"Via: SIP/2.0/UDP {host}:{port};rport;branch=z9hG4bK-{number}", "Max-Forwards: 70",
            f"From: {name};tag={number}", f"To: {name}", f"Call-ID: {number}", "CSeq: 1 REGISTER",
            f"Contact: <{contact}>", "Expires: 600", "Content-Length: 0", "", "",
        )  # fmt: skip
        self._transport.sendto("\r\n".join(lines).encode())

    async def accepted(self, count: int) -> None:
        """Wait until so many were accepted."""
        while sum(" 200 " in status for status in self.answers.values()) < count:
            self._changed.clear()
            await self._changed.wait()
