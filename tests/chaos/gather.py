"""Collects what was seen in a run: SIPp's accounts, Asterisk's dials, and the topics."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
from aiokafka import ConsumerRecord

from bench.ami import Message, connected
from callyard.parts.cluster import GATEWAY_ID
from callyard.parts.sipp import Sipp
from callyard.settings import AmiSettings
from callyard.topics import topics
from streams.rows import ACTIVE, StayRow
from tests.chaos.facts import Dial, Facts, Leg, Opened, Record, SeenCaller
from tests.chaos.fold import compacted
from tests.chaos.load import Load
from tests.chaos.site import CALL_LEASE_SECONDS, Site
from tests.support import kafka
from tests.support.wait import until

QUIET_SECONDS = CALL_LEASE_SECONDS + 30.0
"""How long the ends of all calls may take to reach the table: at the worst one lease, and the timers."""


class Dials:
    """What Asterisk dials, from its manager interface past all proxies."""

    def __init__(self) -> None:
        self.seen: list[Dial] = []

    def take(self, message: Message) -> None:
        """Note a dial."""
        stay, _, attempt = message.variables.get("CALLYARD_MARK", "").partition("x")
        if message["Event"] == "DialBegin" and attempt:
            conference = message.variables.get("CALLYARD_CONFERENCE", "")
            call_id = f"{GATEWAY_ID}/{message['Uniqueid']}"
            self.seen.append(Dial(call_id, int(stay), int(attempt), conference, message.at_ns / 1e9))


@asynccontextmanager
async def dials(ami: AmiSettings) -> AsyncIterator[Dials]:
    """Follow Asterisk's dials."""
    found = Dials()
    async with connected(ami, found.take):
        yield found


async def quiet(site: Site) -> None:
    """Wait until the table has an end of every stay and all inputs are decided, at most `QUIET_SECONDS`.

    What has none by then, the verdict tells.
    """
    names = topics(site.settings)

    async def all_told() -> bool:
        with contextlib.suppress(AssertionError):  # not readable within its time: tried again
            rows, positions = compacted(_records(await kafka.read(site.settings, names.changelog.name)))
            inputs = len(await kafka.read(site.settings, names.registrations.name, names.calls.name))
            applied = sum(
                offset + 1
                for row in positions.values()
                for topic, offset in row["applied"].items()
                if topic != names.timers.name
            )
            active = [row for row in rows.values() if isinstance(row, StayRow) and row.state in ACTIVE]
            return not active and applied >= inputs
        return False

    with contextlib.suppress(AssertionError):
        await until(all_told, QUIET_SECONDS, every=1)


async def gather(site: Site, load: Load, seen: Dials, outside: Sequence[str]) -> Facts:
    """All facts of a run whose workers have ended."""
    names = topics(site.settings)

    async def read(*topic: str) -> list[Record]:
        return _records(await kafka.read(site.settings, *topic, timeout=60))

    inputs = await read(names.registrations.name, names.calls.name)
    return Facts(
        callers=[_caller(party.caller.number, party.caller.conference, party.sip, party.told_to_leave)
                 for party in load.parties],
        legs=[leg for node in site.nodes for leg in _legs(node.name, node.sip)],
        openings=[Opened(o.conference, o.node, o.opened, o.closed) for o in load.openings],
        outside=outside,
        dials=seen.seen,
        journal=await read(names.journal.name),
        instructions=await read(names.dials.name),
        calls=[record for record in inputs if record.topic == names.calls.name],
        changelog=await read(names.changelog.name),
        inputs=len(inputs),
        timers=names.timers.name,
    )  # fmt: skip


def dump(directory: Path, facts: Facts) -> None:
    """Write facts as they are into a failing run's folder."""
    (directory / "facts.json").write_bytes(orjson.dumps(facts.as_dict(), option=orjson.OPT_INDENT_2))
    for name in ("journal", "instructions", "calls", "changelog"):
        records: Sequence[Record] = getattr(facts, name)
        lines = (orjson.dumps(_readable(record)) + b"\n" for record in records)
        (directory / f"{name}.jsonl").write_bytes(b"".join(lines))


def _readable(record: Record) -> dict[str, Any]:
    value = None if record.value is None else orjson.loads(record.value)
    key = None if record.key is None else record.key.decode(errors="replace")
    return {"at": record.timestamp, "in": f"{record.topic}-{record.partition}@{record.offset}", "key": key, "v": value}


def _records(found: Iterable[ConsumerRecord[Any, Any]]) -> list[Record]:
    made = [Record(r.topic, r.partition, r.offset, r.timestamp, r.key, r.value, r.headers) for r in found]
    return sorted(made, key=lambda record: (record.topic, record.partition, record.offset))


def _caller(number: str, conference: str, sip: Sipp, told: float | None) -> SeenCaller:
    answered, over, how = None, None, ""
    call_id = ""
    for event in sip.events():
        if event.caller != number:
            continue
        if event.what == "answered":
            answered, call_id = event.at, event.call_id
        elif event.what in {"ended", "left"}:
            over, how = event.at, event.what
    if not how and (at := sip.aborted().get(call_id)) is not None:
        over, how = at, "aborted"
    return SeenCaller(number, conference, answered, over, how, told)


def _legs(node: str, sip: Sipp) -> list[Leg]:
    called = {event.call_id: event for event in sip.events("called")}
    ends = {event.call_id: event for event in sip.events() if event.what in {"ended", "left", "cancelled"}}
    aborted = sip.aborted()
    legs = []
    for call_id, event in called.items():
        end = ends.get(call_id)
        how = end.what if end is not None else "aborted" if call_id in aborted else ""
        at = end.at if end is not None else aborted.get(call_id)
        legs.append(Leg(node, call_id, event.caller, event.conference, event.at, at, how))
    return legs
