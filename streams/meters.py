"""The stream's metrics, and how a group of decisions moves them. docs/metrics.md lists them."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import Counter, Gauge, Histogram

from callyard.sending import REJECTED
from streams.partition import Group, Partition
from streams.rows import ACTIVE

DECIDED = Counter("callyard_stream_decisions", "Inputs decided.", ["type", "outcome"])
GROUP_SIZE = Histogram(
    "callyard_stream_group_inputs", "Inputs decided as one group.", buckets=(1, 2, 5, 10, 50, 100, 500)
)
GROUP_SECONDS = Histogram(
    "callyard_stream_group_seconds",
    "Seconds from taking a group of inputs to the delivery of its outputs.",
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2, 10),
)
WAIT_SECONDS = Histogram(
    "callyard_stream_wait_seconds",
    "Seconds that a caller waited, from entering the number (or the end of a talk) to being in the conference.",
    buckets=(1, 5, 15, 60, 180, 300, 600, 900, 1800, 3600),
)
PUT_THROUGH_SECONDS = Histogram(
    "callyard_stream_put_through_seconds",
    "Seconds of that wait in which the conference was registered as well: what Callyard and the node took.",
    buckets=(0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60),
)
LEASES_EXPIRED = Counter("callyard_stream_leases_expired", "Leases that ran out without a renewal.", ["of"])
INSTRUCTIONS = Counter("callyard_stream_instructions", "Instructions issued to gateways.", ["type"])
REGISTRATIONS = Gauge("callyard_stream_registrations", "Live registrations in the partitions of this worker.")
CALLERS = Gauge("callyard_stream_callers", "Callers in the partitions of this worker, by what they do.", ["state"])
DESKS = Gauge("callyard_stream_desks", "Conference numbers that this worker remembers anything of.")
PARTITIONS = Gauge("callyard_stream_partitions", "Partitions that this worker owns.")
HELD = Gauge("callyard_stream_timers_held", "Timers that wait for inputs written before them.")

for _of in ("registration", "call"):  # so that they are there before the first one
    LEASES_EXPIRED.labels(_of)


def decided(group: Group) -> None:
    """A group was decided and all that follows from it is delivered."""
    facts = group.facts
    GROUP_SIZE.observe(group.consumed)
    for (kind, outcome), count in facts.outcomes.items():
        DECIDED.labels(kind, outcome).inc(count)
    for kind, count in facts.instructions.items():
        INSTRUCTIONS.labels(kind).inc(count)
    for topic, count in facts.rejected.items():
        REJECTED.labels(topic).inc(count)
    for seconds in facts.waits:
        WAIT_SECONDS.observe(seconds)
    for seconds in facts.put_through:
        PUT_THROUGH_SECONDS.observe(seconds)
    LEASES_EXPIRED.labels("registration").inc(facts.lapsed_registrations)
    LEASES_EXPIRED.labels("call").inc(facts.lapsed_calls)


def owned(partitions: Iterable[Partition]) -> None:
    """What the partitions of this worker hold now."""
    present = list(partitions)
    PARTITIONS.set(len(present))
    DESKS.set(sum(len(partition.desks) for partition in present))
    REGISTRATIONS.set(sum(partition.census.registrations for partition in present))
    for state in ACTIVE:
        CALLERS.labels(state.value).set(sum(partition.census.callers[state] for partition in present))


def clear() -> None:
    """This worker owns nothing."""
    owned(())
    HELD.set(0)
