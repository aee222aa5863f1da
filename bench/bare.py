"""A bare consumer: reads a topic from its beginning to its present end and does nothing with it.

    python -m bench.bare TOPIC PARTITIONS        (the cluster: CALLYARD_KAFKA_…)

Prints JSON: how many records, in how many seconds. It is what the audit's commands are measured beside.
"""

from __future__ import annotations

import sys
import time

import orjson
import uvloop
from aiokafka import TopicPartition

from callyard import clients
from callyard.settings import KafkaSettings, load


async def _read(topic: str, count: int) -> dict[str, float]:
    settings = load(KafkaSettings)[KafkaSettings]
    async with clients.consumer(settings, auto_offset_reset="earliest") as consumer:
        partitions = [TopicPartition(topic, number) for number in range(count)]
        consumer.assign(partitions)
        starts = await consumer.beginning_offsets(partitions)
        ends = await consumer.end_offsets(partitions)
        total, taken, began = sum(ends.values()) - sum(starts.values()), 0, time.monotonic()
        while taken < total:
            for records in (await consumer.getmany(timeout_ms=200)).values():
                taken += len(records)
        return {"records": taken, "seconds": time.monotonic() - began}


def main() -> None:
    """Read and print."""
    topic, partitions = sys.argv[1:]
    sys.stdout.write(orjson.dumps(uvloop.run(_read(topic, int(partitions)))).decode() + "\n")


if __name__ == "__main__":
    main()
