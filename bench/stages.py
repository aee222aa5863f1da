"""The way of each caller from the conference's opening to the dial, put together from what the workers leave behind.

Nothing is instrumented for it. All clocks are those of one machine:

=================  =================================================================  ==========
milestone          seen by                                                            resolution
=================  =================================================================  ==========
opened             the clock just before FreeSWITCH's double writes the event         1 us
registered         the broker's timestamp (LogAppendTime) of conference-registered    1 ms
decided            the timestamp that the stream gave the row ``dialing`` in the
                   table's changelog: the batch was built, nothing was written yet    1 ms
instructed         the broker's timestamp of the dial instruction                     1 ms
redirect written   the agent's debug line: just after it wrote the redirect           1 us
redirect accepted  the same line: Asterisk's answer was read                          1 us
dialled            the observer's read of DialBegin                                   1 us
=================  =================================================================  ==========

Timestamps in whole milliseconds are cut off, not rounded: half a millisecond is added to each, so that the stages
beside them are right on average. A stage of one caller may be wrong by a millisecond, the total is not.

LogAppendTime is taken before the broker writes: where the write itself hangs, it shows in the stage after it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson
from aiokafka import TopicPartition

from bench.callers import Caller, Observer
from bench.figures import Spread
from callyard import clients
from callyard.errors import CommandError
from callyard.parts.cluster import GATEWAY_ID, Cluster
from callyard.records import DIALS, REGISTRATIONS, ConferenceRegistered, parse
from callyard.settings import KafkaSettings
from callyard.topics import topics
from streams.rows import StayState, split_key

MILESTONES = ("opened", "registered", "decided", "instructed", "redirect written", "redirect accepted", "dialled")
STAGES = {
    "hook → registrations": ("opened", "registered"),
    "→ decision": ("registered", "decided"),
    "→ dials": ("decided", "instructed"),
    "→ redirect written": ("instructed", "redirect written"),
    "→ redirect accepted": ("redirect written", "redirect accepted"),
    "→ DialBegin": ("redirect accepted", "dialled"),
}
HALF_MS_NS = 500_000
LOG_SECONDS = 5.0
Journey = Mapping[str, int]
"""A caller's milestones: nanoseconds since 1970-01-01 UTC."""


async def journeys(
    cluster: Cluster, observer: Observer, callers: Sequence[Caller], opened: Mapping[str, int]
) -> list[Journey]:
    """The way of each of these callers; ``opened`` says when each conference was, in nanoseconds.

    Raises `CommandError` where a caller's way has a gap: then what was measured isn't what this says.
    """
    names = topics(cluster.settings)
    redirects = await _redirects(cluster, callers)
    registered: dict[str, int] = {}
    decided: dict[str, int] = {}
    instructed: dict[str, int] = {}
    for record in await read(cluster.settings, names.registrations.name, names.dials.name, names.changelog.name):
        at = record.timestamp * 1_000_000 + HALF_MS_NS
        if record.topic == names.registrations.name:
            registration = parse(REGISTRATIONS, record.value)
            if isinstance(registration, ConferenceRegistered):
                registered.setdefault(registration.conference, at)
        elif record.topic == names.dials.name:
            instructed.setdefault(parse(DIALS, record.value).call_id, at)
        elif record.value is not None and split_key(record.key)[2] == "s":
            row = orjson.loads(record.value)
            if row["state"] == StayState.DIALING.value:
                decided.setdefault(row["call_id"], at)
    found: list[Journey] = []
    for caller in callers:
        call_id = f"{GATEWAY_ID}/{caller.uniqueid}"
        try:
            redirect = redirects[call_id]
            found.append({
                "opened": opened[caller.conference], "registered": registered[caller.conference],
                "decided": decided[call_id], "instructed": instructed[call_id],
                "redirect written": redirect["written_ns"], "redirect accepted": redirect["applied_ns"],
                "dialled": observer.dialled[caller.uniqueid],
            })  # fmt: skip
        except KeyError as error:
            raise CommandError(f"nothing tells a milestone of the caller {caller}: {error}") from None
    return found


async def _redirects(cluster: Cluster, callers: Sequence[Caller]) -> dict[str, dict[str, Any]]:
    """The agent's first redirect of each call. Its line follows Asterisk's answer, which may follow DialBegin."""
    wanted = {f"{GATEWAY_ID}/{caller.uniqueid}" for caller in callers}
    found: dict[str, dict[str, Any]] = {}

    async def complete() -> bool:
        for line in cluster.agent.lines():
            if '"redirect accepted"' in line:
                fields = orjson.loads(line)
                found.setdefault(fields["call_id"], fields)
        return wanted <= found.keys()

    await cluster.agent.until(complete, LOG_SECONDS, "telling of all redirects")
    return found


async def read(settings: KafkaSettings, *names: str) -> list[Any]:
    """All records of these topics that are there now, each partition in its order."""
    found = []
    async with clients.consumer(settings, auto_offset_reset="earliest") as consumer:
        partitions = [TopicPartition(name, number) for name in names for number in range(settings.partitions)]
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        while any([await consumer.position(one) < end for one, end in ends.items()]):
            for batch in (await consumer.getmany(timeout_ms=200)).values():
                found.extend(batch)
    return found


async def settled(settings: KafkaSettings, seconds: float = 10) -> None:
    """Wait until nothing was written to inputs, dials and journal for half a second, or for so long at most."""
    names = topics(settings)
    async with clients.consumer(settings) as consumer:
        partitions = [
            TopicPartition(topic.name, number)
            for topic in (*names.inputs, names.dials, names.journal)
            for number in range(settings.partitions)
        ]
        before: Mapping[TopicPartition, int] = {}
        for _ in range(round(seconds / 0.5)):
            now = await consumer.end_offsets(partitions)
            if now == before:
                return
            before = now
            await asyncio.sleep(0.5)


def total(found: Iterable[Journey]) -> Spread:
    """From the opening to the dial."""
    return Spread.of((one["dialled"] - one["opened"]) / 1e6 for one in found)


def spreads(found: Sequence[Journey]) -> dict[str, Spread]:
    """Each stage by itself. The percentiles of the stages don't add up to those of the whole."""
    return {
        name: Spread.of((one[end] - one[begin]) / 1e6 for one in found) for name, (begin, end) in STAGES.items()
    }  # fmt: skip


def since_opening(found: Sequence[Journey]) -> dict[str, Spread]:
    """Each milestone's time since the opening."""
    return {name: Spread.of((one[name] - one["opened"]) / 1e6 for one in found) for name in MILESTONES[1:]}
