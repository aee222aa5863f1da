"""Callers and nodes for demo, tests and bench: SIPp, which speaks real SIP and sends real DTMF.

A scenario logs a line for each thing that happens to a call, with its time; `Event` is such a line. What is asserted
about calls comes from these lines: who was answered, by which node, for which conference.

SIPp ends without a BYE when it is told to stop. `Sipp.hang_up` therefore sends the scenario a MESSAGE with the call's
Call-ID, and the scenario sends the BYE.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal, NamedTuple

from callyard.parts import confine
from callyard.parts.ports import LOOPBACK, free_sip_port, is_served
from callyard.parts.prepare import INSTANCE, Parts, found
from callyard.processes import Child, free_port

SCENARIOS = Path(__file__).parent / "scenarios"
ANSWERS = "answers"
SILENT = "rings and never answers"
NORMAL_CLEARING = 16
"""Q.850 cause of a usual hang-up."""
TELL_AGAIN_SECONDS = 0.5
DTMF_PAYLOAD = "96"
"""RTP payload type in which SIPp's play_dtmf sends telephone events (RFC 4733)."""


_ABORTED = re.compile(r"([0-9]+\.[0-9]+): Aborting call on (?:an )?unexpected .*[cC]all(?:-Id)?:? '?([^\s']+)")


class Call(NamedTuple):
    """One caller: whose number, what is dialled, what is entered as DTMF once answered."""

    number: str
    enters: str
    dials: str = "100"


class Event(NamedTuple):
    """What happened to a call: ``called``, ``answered``, ``ended`` (by the other side), ``left``, ``cancelled``."""

    what: str
    at: float
    """Seconds since 1970-01-01 UTC, by this machine's clock."""
    call_id: str
    """SIP's Call-ID; each leg has its own."""
    caller: str
    """The caller's number, as this side of the call sees it."""
    conference: str
    """At a node: the conference it was called for. At a caller: what was entered."""


class Sipp:
    """One running SIPp. Made by `calling` and `node`."""

    def __init__(self, directory: Path, name: str, transport: Literal["udp", "tcp"], words: Sequence[str]) -> None:
        self.name = name
        self.directory = directory.absolute()
        self.transport = transport
        self.port = free_sip_port()
        self._log = self.directory / f"{name}.events"
        parts = found()
        self._child = Child(name, self._command(parts, words), log=self.directory / f"{name}.screen")

    def _command(self, parts: Parts, words: Sequence[str]) -> list[str]:
        inside = INSTANCE if parts.sipp_root else str(self.directory)
        argv = [
            str(parts.sipp), *(word.replace("{directory}", inside) for word in words),
            "-t", "t1" if self.transport == "tcp" else "u1",
            "-i", LOOPBACK, "-p", str(self.port), "-bind_local", "-mi", LOOPBACK,
            "-ci", LOOPBACK, "-cp", str(free_port(LOOPBACK, socket.SOCK_DGRAM)),
            "-nostdin", "-aa", "-f", "3600",
            "-trace_logs", "-log_file", f"{inside}/{self.name}.events",
            "-trace_err", "-error_file", f"{inside}/{self.name}.errors",
            "-trace_msg", "-message_file", f"{inside}/{self.name}.messages",
        ]  # fmt: skip
        if parts.sipp_root:
            return confine.command(argv, root=parts.sipp_root, binds=[(self.directory, INSTANCE)])
        return confine.command(argv)

    def start(self) -> None:
        """Start it; returns at once."""
        self._child.start()

    async def serving(self) -> None:
        """Wait until its SIP port is open. Raises `processes.ProcessError` when SIPp ends before."""

        async def open_port() -> bool:
            return is_served(self.port, self.transport)

        await self._child.until(open_port, 10, "listening")

    @property
    def running(self) -> bool:
        return self._child.running

    def events(self, what: str | None = None) -> list[Event]:
        """What has happened so far, in order; only of one kind where ``what`` is given."""
        if not self._log.exists():
            return []
        content = self._log.read_text(encoding="utf-8", errors="replace")
        found_events = []
        for line in content[: content.rfind("\n") + 1].splitlines():
            kind, seconds, microseconds, call_id, caller, conference = line.split(" ")
            at = float(seconds) + float(microseconds) / 1e6
            found_events.append(Event(kind, at, call_id, caller, conference.rstrip("#")))
        return [event for event in found_events if what in {None, event.what}]

    async def until(
        self, condition: Callable[[list[Event]], bool], timeout: float = 10, what: str = "as expected"
    ) -> list[Event]:
        """Wait until the events fulfil a condition; returns them.

        Raises `processes.ProcessError` when SIPp ends before, or after ``timeout`` seconds.
        """

        async def holds() -> bool:
            return condition(self.events())

        await self._child.until(holds, timeout, what)
        return self.events()

    async def saw(self, what: str, count: int = 1, timeout: float = 10) -> list[Event]:
        """Wait for so many events of one kind; returns them."""
        await self.until(lambda events: sum(e.what == what for e in events) >= count, timeout, f"{count} times {what}")
        return self.events(what)

    def talking(self) -> list[Event]:
        """The calls that were answered and have not ended, as their events ``answered``."""
        over = self.over()
        return [event for event in self.events("answered") if event.call_id not in over]

    def over(self) -> set[str]:
        """The Call-IDs of the calls that have ended, also of those whose end the scenario could not log."""
        over = {event.call_id for event in self.events() if event.what in {"ended", "left", "cancelled"}}
        return over | self.aborted().keys()

    def aborted(self) -> dict[str, float]:
        """The Call-IDs of the calls that ended outside of the scenario, and when (seconds since 1970-01-01 UTC).

        Where a BYE comes in the instant before ours, SIPp answers it and gives the call up: that stands in the file of
        errors only.
        """
        errors = self._log.with_suffix(".errors")
        if not errors.exists():
            return {}
        found_lines = _ABORTED.findall(errors.read_text(encoding="utf-8", errors="replace"))
        return {call_id: float(at) for at, call_id in found_lines}

    async def hang_up(self, *call_ids: str, cause: int = NORMAL_CLEARING) -> None:
        """Hang up these calls (all that talk where none is named), each with a BYE; waits until that is answered.

        ``cause``: the Q.850 cause that a node gives for it, as FreeSWITCH does (RFC 3326).
        """
        wanted = set(call_ids) or {event.call_id for event in self.talking()}
        told = 0.0

        async def over() -> bool:
            nonlocal told
            missing = wanted - self.over()
            # Told again after a while: a burst of datagrams overruns SIPp's receive buffer.
            if missing and time.monotonic() - told > TELL_AGAIN_SECONDS:
                told = time.monotonic()
                for call_id in missing:
                    self._tell(call_id, cause)
            return not missing

        await self._child.until(over, 15, "done with hanging up")

    def _tell(self, call_id: str, cause: int) -> None:
        kind = socket.SOCK_STREAM if self.transport == "tcp" else socket.SOCK_DGRAM
        lines = (
            f"MESSAGE sip:{LOOPBACK}:{self.port} SIP/2.0",
            f"Via: SIP/2.0/{self.transport.upper()} {LOOPBACK}:9;branch=z9hG4bK-hangup",
            f"From: <sip:test@{LOOPBACK}>;tag=hangup", f"To: <sip:test@{LOOPBACK}>", f"Call-ID: {call_id}",
            "CSeq: 1 MESSAGE", f"Reason: Q.850;cause={cause}", "Content-Length: 0", "", "",
        )  # fmt: skip
        with socket.socket(socket.AF_INET, kind) as sender:
            sender.connect((LOOPBACK, self.port))
            sender.sendall("\r\n".join(lines).encode())

    async def stop(self) -> None:
        """Hang up what still talks, then end SIPp."""
        if self.running and self.talking():
            try:
                await self.hang_up()
            finally:
                await self._child.kill()
            return
        await self._child.kill()

    async def kill(self) -> None:
        """End SIPp without a word to anybody, as a machine that lost its network."""
        await self._child.kill()


class Node(Sipp):
    """A node's SIP side."""

    def uri(self, conference: str = "{conference}") -> str:
        """The SIP URI under which a conference is reached here; without an argument, the template of settings."""
        return f"sip:{conference}@{LOOPBACK}:{self.port};transport={self.transport}"


@asynccontextmanager
async def calling(
    directory: Path, gateway: tuple[str, int], calls: Sequence[Call], *, name: str = "callers", rate: float = 10,
    scenario: str | None = None,
) -> AsyncIterator[Sipp]:  # fmt: skip
    """Call a gateway (address and UDP port) with all ``calls``, ``rate`` new ones a second; hang up at the end.

    ``scenario``: another one than ``caller.xml``, as text; what isn't UTF-8 in it stands as `surrogateescape` has it.
    """
    lines = ["SEQUENTIAL", *(f"{call.number};{call.dials};{call.enters}" for call in calls)]
    scenario = scenario or (SCENARIOS / "caller.xml").read_text(encoding="utf-8")
    _place(directory, {"caller.xml": scenario, f"{name}.csv": "\n".join(lines) + "\n"})
    callers = Sipp(directory, name, "udp", [
        f"{gateway[0]}:{gateway[1]}", "-sf", "{directory}/caller.xml", "-inf", f"{{directory}}/{name}.csv",
        "-m", str(len(calls)), "-l", str(len(calls)), "-r", str(max(1, round(rate * 10))), "-rp", "10000",
        "-key", "dtmf_payload", DTMF_PAYLOAD,
    ])  # fmt: skip
    callers.start()
    try:
        yield callers
    finally:
        await callers.stop()


@asynccontextmanager
async def node(
    directory: Path, *, name: str = "node", transport: Literal["udp", "tcp"] = "tcp", behaviour: str = ANSWERS
) -> AsyncIterator[Node]:
    """A node. ``behaviour``: `ANSWERS`, `SILENT`, or the status it refuses each call with (``404 Not Found``)."""
    scenario = {ANSWERS: "node", SILENT: "silent"}.get(behaviour, "refusing")
    # SIPp takes no keyword for a status: it reads it when it loads the scenario.
    content = (SCENARIOS / f"{scenario}.xml").read_text(encoding="utf-8").replace("[status]", behaviour)
    _place(directory, {f"{scenario}.xml": content})
    made = Node(directory, name, transport, ["-sf", f"{{directory}}/{scenario}.xml"])
    made.start()
    try:
        await made.serving()
        yield made
    finally:
        await made.stop()


def _place(directory: Path, files: Mapping[str, str]) -> None:
    # Into the work directory: the package's own is not visible from another root.
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name).write_text(content, encoding="utf-8", errors="surrogateescape")
