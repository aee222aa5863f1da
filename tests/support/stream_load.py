"""Callers and conferences for stream workers, without gateway or node."""

from __future__ import annotations

import asyncio
import itertools
import random

from aiokafka import AIOKafkaProducer

from callyard import clients
from callyard.settings import KafkaSettings
from callyard.topics import topics
from tests.support import kafka as on_kafka
from tests.support.events import connected, parked, registered, unregistered
from tests.support.streams import follower
from tests.support.wait import until


class Load:
    """Callers and conferences at a steady rate, in the background, until stopped. The seed gives the same events."""

    def __init__(self, settings: KafkaSettings, seed: int = 1, rate: float = 200, first: int = 1) -> None:
        """``first``: the number of the first caller; ``rate``: records a second."""
        self.settings = settings
        self.random = random.Random(seed)
        self.sent = 0
        self.first = first
        self.callers: set[str] = set()
        self._rate = rate
        self._stop = asyncio.Event()

    async def run(self) -> None:
        names = topics(self.settings)
        async with clients.producer(self.settings, "load") as producer:
            for number in itertools.count(self.first):
                if self._stop.is_set():
                    break
                conference = str(40000 + self.random.randrange(200))
                await self._one(producer, names.calls.name, conference, parked(str(number), conference=conference))
                instance = f"i{number}"
                await self._one(
                    producer, names.registrations.name, conference, registered(instance, conference=conference)
                )
                await self._one(producer, names.calls.name, conference, connected(str(number), conference=conference))
                await self._one(
                    producer, names.registrations.name, conference, unregistered(instance, conference=conference)
                )
                self.callers.add(f"gw-1/{number}")
                await asyncio.sleep(4 / self._rate)

    async def _one(self, producer: AIOKafkaProducer, topic: str, conference: str, record: object) -> None:
        await on_kafka.send_one(producer, topic, conference, record)  # type: ignore[arg-type]
        self.sent += 1

    def stop(self) -> None:
        self._stop.set()


async def all_decided(settings: KafkaSettings, load: Load) -> None:
    async with follower(settings) as journal_:
        await until(lambda: journal_.decided(load.sent), timeout=60, what=lambda: f"{journal_} of {load.sent}")
