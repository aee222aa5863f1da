"""The composition root of a stream worker: settings → Faust app, engine, fence.

Faust brings the consumer group, the streams, and the moment at which a table is to be recovered; the engine does
everything that has an effect, and `streams.changelog` reads and writes the table.
The worker ends (exit status 70) at whatever it did not foresee: its supervisor restarts it, and the table tells where
to go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import os
import secrets
import socket
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import faust
import structlog
from aiokafka import AIOKafkaProducer
from faust.types import TP
from prometheus_client import Counter, Gauge

from callyard import access, clients, health, topics
from callyard.fence import Fence, FencedError, fence_producer
from callyard.health import Health
from callyard.notify import Notifier
from callyard.settings import (
    HealthSettings,
    KafkaSettings,
    Loaded,
    PolicySettings,
    SecurityProtocol,
    SettingsError,
    StreamSettings,
)
from callyard.topics import DESK_TABLE, Topics, stream_id
from streams.changelog import Changelog
from streams.engine import Engine
from streams.faust_guards import GuardedApp
from streams.partition import Partition
from streams.policy import Policy

log = structlog.get_logger(__name__)

SKIPPED = Counter(
    "callyard_stream_inputs_removed", "Inputs that retention removed before they were decided.", ["topic"]
)
SHORTER = Counter("callyard_stream_inputs_shorter", "Times that an input was shorter than what was decided.", ["topic"])
LAG = Gauge(
    "callyard_stream_lag", "Records of an input in this worker's partitions that are not decided yet.", ["topic"]
)
RECOVERY_SECONDS = Gauge(
    "callyard_stream_recovery_seconds", "Seconds from the beginning of the last rebalance to this worker being ready."
)
REBALANCES = Counter("callyard_stream_rebalances", "Times that the group gave out its partitions anew.")
EXIT_FAILED = 70
BATCH_BYTES = topics.CHANGELOG_MAX_BYTES - 100_000
OUTPUT_BATCH_BYTES = 400_000
STUCK_SECONDS = 60.0
"""Longer than a group may take to agree (30 s)."""


def end_process(error: BaseException) -> NoReturn:
    """End at once: what is in memory may be ahead of the table, so nothing more may be said or acknowledged."""
    if isinstance(error, access.DENIALS):
        log.critical("the stream worker ends: Kafka refuses it; the next start says which right is missing",
                     error=repr(error))  # fmt: skip
    else:
        log.critical("the stream worker ends", error=repr(error), exc_info=error)
    sys.stderr.flush()
    os._exit(EXIT_FAILED)


def make_app(settings: Loaded, fence: Fence) -> GuardedApp:
    """Faust as it has to be set; each setting that isn't Faust's default has its reason."""
    kafka, stream = settings[KafkaSettings], settings[StreamSettings]
    servers = ";".join(f"kafka://{server.strip()}" for server in kafka.bootstrap_servers.split(","))
    return GuardedApp(
        stream_id(kafka),
        fence=fence,
        broker=servers,
        broker_credentials=_credentials(kafka),
        broker_client_id=_name(),  # what 'callyard status' shows
        datadir="/nonexistent/callyard",  # the memory store writes nothing: see the guard
        store="memory://",
        processing_guarantee="at_least_once",  # exactly_once bypasses outputs and crashes a second worker
        table_standby_replicas=0,  # a memory store reads its changelog anew when it becomes active
        topic_partitions=kafka.partitions,
        topic_allow_declare=False,  # 'callyard topics' makes them
        topic_disable_leader=True,
        web_enabled=False,  # it would listen on 0.0.0.0
        stream_wait_empty=False,  # the engine finishes its group itself; waiting would hang a rebalance
        stream_recovery_delay=0.0,
        broker_session_timeout=stream.session_seconds,
        broker_heartbeat_interval=min(0.5, stream.session_seconds / 6),
        broker_rebalance_timeout=max(30.0, 2 * stream.session_seconds),
        broker_request_timeout=max(15.0, 2 * stream.session_seconds),
        broker_commit_interval=1.0,
        consumer_auto_offset_reset="earliest",  # what was written before the first worker ran is read
        autodiscover=False,
        origin="streams",
    )


def _name() -> str:
    return f"stream:{socket.gethostname()}:{os.getpid()}"


def _credentials(kafka: KafkaSettings) -> Any:
    tls = kafka.security_protocol in (SecurityProtocol.SSL, SecurityProtocol.SASL_SSL)
    context = clients.ssl_context(kafka) if tls else None
    if kafka.security_protocol in (SecurityProtocol.SASL_PLAINTEXT, SecurityProtocol.SASL_SSL):
        arguments = clients.connection(kafka)  # checks that user and password are there
        return faust.SASLCredentials(
            username=arguments["sasl_plain_username"],
            password=arguments["sasl_plain_password"],
            mechanism=kafka.sasl_mechanism,
            ssl_context=context,
        )
    return faust.SSLCredentials(context=context) if context is not None else None


class Worker:
    """One stream worker."""

    def __init__(self, settings: Loaded) -> None:
        self.kafka = settings[KafkaSettings]
        self.topics: Topics = topics.topics(self.kafka)
        self.fence = Fence(settings[StreamSettings].session_seconds)
        self.app = make_app(settings, self.fence)
        self.name = _name()
        self._settings = settings
        self._policy = Policy.of(settings[PolicySettings])
        self._resources = contextlib.AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []
        names = [topic.name for topic in self.topics.inputs]
        inputs = self.app.topic(*names, key_serializer="raw", value_serializer="raw", allow_empty=True)
        # It gives the changelog's partitions to whom it gives the inputs', and tells when to recover; what would be in
        # its dictionary is in the engine's partitions.
        self.app.Table(
            DESK_TABLE, key_type=bytes, value_type=bytes, partitions=self.kafka.partitions, on_recover=self._on_recover
        )
        self.app.agent(inputs, name="desks", concurrency=1)(self._pump)
        self._assigned_in = -1
        self._revoked_at = time.monotonic()
        self.settled = False
        """Whether the group's partitions are given out and those of this worker recovered."""
        self.app.on_partitions_revoked.connect(self._on_revoked, weak=False)
        self.app.on_partitions_assigned.connect(self._on_assigned, weak=False)
        self.app.on_before_shutdown.connect(self._on_shutdown, weak=False)
        self.app.begin = self._begin
        self.app.failed = end_process
        self.app.next_positions = self._next_positions
        self.app.ready = self._on_ready

    # --- what Faust calls -------------------------------------------------------------------------------------------

    async def _begin(self) -> None:
        """Before Faust joins the group: the producer and the engine."""
        stream = self._settings[StreamSettings]
        self.changelog = Changelog(
            self.kafka, self.topics.changelog.name, await self._producer(f"{self.name}:state", BATCH_BYTES),
            self.fence, secrets.token_hex(4), self._partition,
        )  # fmt: skip
        # Outputs are many small records; the brokers' usual limit (1 MB) holds for a batch of them.
        outputs = await self._producer(self.name, OUTPUT_BATCH_BYTES)
        self.engine = Engine(
            topics=self.topics,
            kafka=self,
            changelog=self.changelog,
            outputs=outputs,
            fence=self.fence,
            worker=self.name,
            group_limit=stream.group_limit,
            tick_seconds=stream.tick_seconds,
            failed=end_process,
        )
        self._tasks = [
            asyncio.create_task(self.engine.run(), name="engine"),
            asyncio.create_task(self.engine.keep_time(), name="timers"),
            asyncio.create_task(self._watch_rebalance(), name="watch"),
        ]

    def _partition(self, number: int) -> Partition:
        snapshot_ms = round(self._settings[StreamSettings].snapshot_seconds * 1000)
        return Partition(number, self.topics, self._policy, snapshot_ms)

    async def _producer(self, client_id: str, batch_bytes: int) -> AIOKafkaProducer:
        made = await self._resources.enter_async_context(
            clients.producer(self.kafka, client_id, max_batch_size=batch_bytes, max_request_size=BATCH_BYTES + 50_000)
        )
        fence_producer(made, self._check_fence)
        return made

    def _check_fence(self) -> None:
        try:
            self.fence.check()
        except FencedError as error:
            end_process(error)

    async def _watch_rebalance(self) -> None:
        """End the process when a rebalance goes nowhere: another worker, or the next start, then has the partitions."""
        before, since = (-1, -1), time.monotonic()
        while True:
            await asyncio.sleep(STUCK_SECONDS / 12)
            progress = self.app.rebalancing_count, self.changelog.read_rows
            if not self.app.rebalancing or progress != before:
                before, since = progress, time.monotonic()
            elif time.monotonic() - since > STUCK_SECONDS:
                end_process(RuntimeError(f"a rebalance made no progress for {STUCK_SECONDS:g} s"))

    async def _pump(self, stream: Any) -> None:
        async for event in stream.noack().events():
            await self.engine.put(event)

    async def _on_revoked(self, *_: Any, **__: Any) -> None:
        self._revoked_at = time.monotonic()
        self.settled = False
        await self.engine.revoke()

    async def _on_assigned(self, *_: Any, **__: Any) -> None:
        self._assigned_in = self.app.rebalancing_count

    async def _on_recover(self) -> None:
        # Faust awaits this callback but ignores what it raises.
        if self.app.recovers_again:
            return
        try:
            generation = self.generation()
            owned = {tp.partition for tp in self.app.consumer.assignment() if tp.topic == self.topics.calls.name}
            await self.engine.recover(generation, owned)
        except Exception as error:  # noqa: BLE001 - whatever it is, the worker can't go on
            end_process(error)

    async def _next_positions(self) -> Mapping[TP, int]:
        """Where each assigned input is read on: after what was applied, or where the log begins."""
        try:
            return await self._positions()
        except Exception as error:  # noqa: BLE001 - as above
            end_process(error)

    async def _positions(self) -> Mapping[TP, int]:
        inputs = {topic.name for topic in self.topics.inputs}
        assigned = {tp for tp in self.app.consumer.assignment() if tp.topic in inputs}
        applied = self.engine.applied()
        known = {tp for tp in assigned if (tp.topic, tp.partition) in applied}
        if not known:
            return {}
        positions = {}
        ends = await self.app.consumer.highwaters(*known)
        for tp, begin in (await self.app.consumer.earliest_offsets(*known)).items():
            following = applied[tp.topic, tp.partition] + 1
            first = begin or 0
            if following > (ends[tp] or 0):
                # It was deleted and made anew, or its end was lost. What is there may be new, so all of it is read:
                # deciding a record of the past anew is harmless (the gateway knows better), losing one is not.
                log.error("an input is shorter than what was decided; reading it from its beginning",
                          topic=tp.topic, partition=tp.partition, decided_to=following - 1, end=ends[tp])  # fmt: skip
                SHORTER.labels(tp.topic).inc()
                following = first
                self.engine.skip(tp.topic, tp.partition, first - 1)
            elif first > following:
                # Retention is far longer than any outage.
                if following > 0:
                    log.error("inputs were removed before they were decided", topic=tp.topic, partition=tp.partition,
                              first_missing=following, next_present=first)  # fmt: skip
                    SKIPPED.labels(tp.topic).inc(first - following)
                self.engine.skip(tp.topic, tp.partition, first - 1)
            positions[TP(tp.topic, tp.partition)] = max(first, following)
        return positions

    @property
    def partitions(self) -> int:
        """How many partitions this worker has."""
        return len({tp.partition for tp in self.app.consumer.assignment()})

    def _on_ready(self) -> None:
        self.settled = True
        gc.collect(1)  # what is frozen is never looked through again, so garbage must not be among it
        gc.freeze()
        seconds = time.monotonic() - self._revoked_at
        REBALANCES.inc()
        RECOVERY_SECONDS.set(seconds)
        log.info("ready", partitions=self.partitions, seconds=round(seconds, 3))

    async def _on_shutdown(self, *_: Any, **__: Any) -> None:
        await self.engine.revoke()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._resources.aclose()

    # --- what the engine asks ---------------------------------------------------------------------------------------

    def generation(self) -> int:
        # A rebalance is counted the moment it begins; the assignment that ends it is what may be spoken for.
        return self.app.consumer_generation_id if self._assigned_in == self.app.rebalancing_count else -1

    def lag(self, topic: str) -> int:
        """How many records of an input are there that are not decided, as far as the last fetches have told."""
        applied = self.engine.applied() if self.settled else {}
        ends = ((self.app.consumer.highwater(TP(name, number)), at) for (name, number), at in applied.items()
                if name == topic)  # fmt: skip
        return sum(max(0, (end or 0) - at - 1) for end, at in ends)

    async def ends(self, names: Iterable[str], partition: int) -> Mapping[str, int]:
        tps = [TP(name, partition) for name in names]
        return {tp.topic: end or 0 for tp, end in (await self.app.consumer.highwaters(*tps)).items()}


async def _check(settings: Loaded) -> None:
    kafka = settings[KafkaSettings]
    await access.check(kafka, "stream")
    async with clients.admin(kafka) as admin:
        await topics.check(admin, kafka)


async def _main(settings: Loaded, stop: asyncio.Event, told: Health) -> None:
    await _check(settings)
    worker = Worker(settings)
    told.require("partitions are assigned and their table is recovered", lambda: worker.settled)
    told.require("the group has lately confirmed this worker", lambda: worker.fence.holds)
    for topic in worker.topics.inputs:
        LAG.labels(topic.name).set_function(functools.partial(worker.lag, topic.name))
    notifier = Notifier()
    telling = [
        asyncio.create_task(task, name=name)
        for name, task in notifier.tasks(told.missing, lambda: f"decides for {worker.partitions} partitions").items()
    ]
    worker.app.in_worker = True
    starting = asyncio.create_task(worker.app.start(), name="faust")
    crashed = asyncio.create_task(worker.app.wait_until_stopped(), name="faust stopped")
    stopping = asyncio.create_task(stop.wait(), name="stop")
    await asyncio.wait([crashed, stopping, *telling], return_when=asyncio.FIRST_COMPLETED)
    if not stop.is_set():
        failed = next((task.exception() for task in telling if task.done()), None)
        end_process(worker.app.crash_reason or failed or RuntimeError("Faust stopped by itself"))
    notifier.stopping()
    await worker.app.stop()
    for task in (starting, crashed, stopping, *telling):
        task.cancel()
    await asyncio.gather(starting, crashed, stopping, *telling, return_exceptions=True)


def check_snapshots(settings: Loaded) -> None:
    """Raise `SettingsError` unless the journal is kept for two snapshots: else no moment of it could be restored."""
    kafka, stream = settings[KafkaSettings], settings[StreamSettings]
    days = kafka.retention_days_of("journal")
    if days * 86_400 < 2 * stream.snapshot_seconds:
        raise SettingsError(
            [
                f"{kafka.variable('retention_days')} is {days:g} days for the journal, less than twice"
                f" {stream.variable('snapshot_seconds')} ({stream.snapshot_seconds:g} s): keep the journal longer, or"
                " take snapshots more often"
            ]
        )


def _quieten_faust() -> None:
    """Faust tells of each service that starts and stops; what matters is logged by the engine."""
    for name in ("faust", "mode", "streams.faust_guards"):
        logging.getLogger(name).setLevel(logging.WARNING)


def run(settings: Loaded) -> None:
    """Run a stream worker until SIGTERM or SIGINT. Raises what `topics.check` raises; other errors end the process.

    Raises `SettingsError` where the journal isn't kept long enough for its snapshots.
    """
    check_snapshots(settings)
    _quieten_faust()
    # A large table is millions of objects, with hardly a cycle among them: looking through them again and again took a
    # third of its recovery. What was recovered isn't looked through at all (`_on_ready`): that would stop the worker.
    gc.set_threshold(100_000, 50, 100)
    health.run(settings[HealthSettings], functools.partial(_main, settings))
