"""The floor's other process: takes each message of one topic and sends one of another, on uvloop, and nothing else.

    python -m bench.relay BOOTSTRAP PARTITIONS FROM TO BYTES

It has the clients that the workers have (acks from all replicas, no lingering, idempotent). Its answer begins with the
message's key and has the size of a dial instruction.
"""

from __future__ import annotations

import asyncio
import sys

import uvloop
from aiokafka import TopicPartition

from callyard import clients
from callyard.settings import KafkaSettings

KEY = b"gw-1"


async def _relay(servers: str, partitions: int, source: str, target: str, size: int) -> None:
    settings = KafkaSettings(bootstrap_servers=servers, partitions=partitions)
    async with (
        clients.producer(settings, "bench-relay") as producer,
        clients.consumer(settings, auto_offset_reset="earliest") as consumer,
    ):
        consumer.assign([TopicPartition(source, number) for number in range(partitions)])
        for partition in consumer.assignment():
            await consumer.position(partition)
        sys.stdout.write('{"event": "ready"}\n')
        sys.stdout.flush()
        deliveries: set[asyncio.Future[object]] = set()
        async for record in consumer:
            delivery = await producer.send(target, record.key.ljust(size), key=KEY)
            deliveries.add(delivery)
            delivery.add_done_callback(deliveries.discard)


def main() -> None:
    """Relay until ended."""
    servers, partitions, source, target, size = sys.argv[1:]
    uvloop.install()
    asyncio.run(_relay(servers, int(partitions), source, target, int(size)))


if __name__ == "__main__":
    main()
