"""The floor: what the same Kafka and the same Asterisk take by themselves, with nothing decided in between.

For each caller, ten a second: a message over two raw hops (producer → topic → consumer → producer → topic → consumer),
and the moment it arrives a bare Setvar, Setvar, Redirect, in one write, until DialBegin. So each sample of the sum is
one that happened, under the same load: the music that the other waiting callers hear is Asterisk's greatest work here.
The workers have ended before.
"""

from __future__ import annotations

import asyncio
import sys
import time
from functools import partial
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import NewTopic

from bench.callers import Caller, Observer, at_rate, parked
from bench.figures import Spread
from bench.machine import Meter
from bench.openings import OPENINGS_A_SECOND, per_second, processes
from callyard import clients
from callyard.errors import CommandError
from callyard.parts.cluster import GATEWAY_ID, Cluster
from callyard.processes import Child
from callyard.records import ConferenceRegistered, DialInstruction, Source

FIRST_FLOOR, FIRST_AT_ONCE = 40_000, 50_000
HOPS = ("bench.hop-1", "bench.hop-2")


async def floor(cluster: Cluster, observer: Observer, count: int) -> dict[str, Any]:
    """Two hops and a bare redirect for each of so many waiting callers, ten a second."""
    numbers = [str(FIRST_FLOOR + number) for number in range(count)]
    async with clients.admin(cluster.settings) as admin:
        await admin.create_topics([NewTopic(name, cluster.settings.partitions, 1) for name in HOPS])
    registration, instruction = sizes()
    relay = Child(
        "relay",
        [
            sys.executable, "-m", "bench.relay", cluster.settings.bootstrap_servers,
            str(cluster.settings.partitions), *HOPS, str(instruction),
        ],
        log=cluster.directory / "relay.log",
    )  # fmt: skip
    relay.start()
    try:
        async with (
            clients.producer(cluster.settings, "bench") as producer,
            clients.consumer(cluster.settings, auto_offset_reset="earliest") as consumer,
            parked(observer, cluster.entrance, cluster.directory / "floor", numbers) as callers,
        ):
            consumer.assign([TopicPartition(HOPS[1], number) for number in range(cluster.settings.partitions)])
            await relay.ready(20)
            for partition in consumer.assignment():
                await consumer.position(partition)
            run = _Run(cluster, observer, callers, relay.pid)
            return await run.measure(producer, consumer, registration)
    finally:
        await relay.stop()


class _Run:
    """The floor of some callers. Times are nanoseconds since 1970-01-01 UTC, by the caller's conference."""

    def __init__(self, cluster: Cluster, observer: Observer, callers: list[Caller], relay: int) -> None:
        self._uri = cluster.nodes[0].sip.uri
        self._processes = {**processes(cluster), "relay": relay}
        self._observer = observer
        self._callers = {caller.conference: caller for caller in callers}
        self._sent: dict[str, int] = {}
        self._arrived: dict[str, int] = {}
        self._answers: list[asyncio.Future[Any]] = []

    async def measure(self, producer: AIOKafkaProducer, consumer: AIOKafkaConsumer, size: int) -> dict[str, Any]:
        taking = asyncio.create_task(self._take(consumer))
        try:
            meter = Meter(self._processes)
            await at_rate(OPENINGS_A_SECOND, [partial(self._send, producer, number, size) for number in self._callers])
            await self._observer.all_dialled(list(self._callers.values()))
            busy = meter.read()
        finally:
            taking.cancel()
            [ended] = await asyncio.gather(taking, return_exceptions=True)
        if not isinstance(ended, asyncio.CancelledError):
            raise CommandError(f"the floor's consumer ended: {ended!r}")
        await _accepted(self._answers)
        hops, redirects, sums = [], [], []
        for number, caller in self._callers.items():
            dialled = self._observer.dialled[caller.uniqueid]
            hops.append((self._arrived[number] - self._sent[number]) / 1e6)
            redirects.append((dialled - self._arrived[number]) / 1e6)
            sums.append((dialled - self._sent[number]) / 1e6)
        return {
            "total": Spread.of(sums),
            "stages": {"two hops of Kafka": Spread.of(hops), "redirect → DialBegin": Spread.of(redirects)},
            "busy": busy,
        }

    async def _send(self, producer: AIOKafkaProducer, number: str, size: int) -> None:
        self._sent[number] = time.time_ns()
        await (await producer.send(HOPS[0], bytes(size), key=number.encode()))

    async def _take(self, consumer: AIOKafkaConsumer) -> None:
        async for record in consumer:
            number = record.value.split(b" ", 1)[0].decode()
            self._arrived[number] = time.time_ns()
            self._answers.append(redirect(self._observer, self._callers[number], self._uri(number)))


def redirect(observer: Observer, caller: Caller, uri: str) -> asyncio.Future[Any]:
    """What the agent writes, in one write: the first attempt of the caller's first stay."""
    channel = {"Channel": caller.channel}
    return observer.ami.send(
        {"Action": "Setvar", **channel, "Variable": "CALLYARD_URI", "Value": uri},
        {"Action": "Setvar", **channel, "Variable": "CALLYARD_DIAL", "Value": "1x1"},
        {"Action": "Redirect", **channel, "Context": "callyard-dial", "Exten": "1x1", "Priority": "1"},
    )


async def _accepted(answers: list[asyncio.Future[Any]]) -> None:
    try:
        found = await asyncio.wait_for(asyncio.gather(*answers), 10)
    except asyncio.TimeoutError:
        raise CommandError("Asterisk does not answer all bare redirects within 10 s") from None
    for answer in found:
        if answer["Response"] != "Success":
            raise CommandError(f"Asterisk refuses a bare redirect: {answer['Message']}")


async def at_once(cluster: Cluster, observer: Observer, count: int) -> dict[str, Any]:
    """Bare redirects of so many waiting callers, all written at once: what a herd is to this Asterisk alone."""
    numbers = [str(FIRST_AT_ONCE)] * count
    async with parked(observer, cluster.entrance, cluster.directory / "at-once", numbers) as callers:
        meter = Meter(processes(cluster))
        began = time.time_ns()
        uri = cluster.nodes[0].sip.uri(str(FIRST_AT_ONCE))
        answers = [redirect(observer, caller, uri) for caller in callers]
        await observer.all_dialled(callers)
        busy = meter.read()
        await _accepted(answers)
        dialled = [observer.dialled[caller.uniqueid] for caller in callers]
    return {
        "total": Spread.of((at - began) / 1e6 for at in dialled),
        "dials a second": per_second(dialled),
        "busy": busy,
    }


def sizes() -> tuple[int, int]:
    """The bytes of a registration and of a dial instruction, as the workers send them."""
    conference, uri, instance = "20000", "sip:20000@127.0.0.1:50600;transport=tcp", "0" * 36
    registration = ConferenceRegistered(
        sender="hook:node-1", sender_sequence=1_800_000_000_000_000, sent_at_ms=1_800_000_000_000,
        conference=conference, source=Source.FREESWITCH, instance_id=instance, node_id="node-1", sip_uri=uri,
        opened_at_ms=1_800_000_000_000,
    )  # fmt: skip
    instruction = DialInstruction(
        gateway_id=GATEWAY_ID, call_id=f"{GATEWAY_ID}/1800000000.1000", conference=conference, stay=1, attempt=1,
        sip_uri=uri, node_id="node-1", source=Source.FREESWITCH, instance_id=instance,
        issued_at_ms=1_800_000_000_000, deadline_ms=1_800_000_010_000, partition=7, epoch=1,
    )  # fmt: skip
    return len(registration.encode()), len(instruction.encode())
