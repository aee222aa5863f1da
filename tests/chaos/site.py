"""What runs: Kafka, an Asterisk, nodes, two stream workers, two agents of the one gateway, a hook for each node.

Every connection that a fault concerns goes through a proxy of its own: AMI, ESL, and the Kafka connections of the
stream workers and agents. The callers' SIP doesn't, nor does what reads the results. A supervisor starts each worker
again that ends, as systemd would; that is part of the design.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import signal
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from callyard.errors import CommandError
from callyard.kafka import embedded
from callyard.parts import asterisk, freeswitch, sipp
from callyard.parts.cluster import agent_environment, hook_environment
from callyard.processes import Child, ProcessError, free_port, worker
from callyard.settings import AmiSettings, KafkaSettings
from callyard.topics_command import ensure
from tests.chaos import proxy
from tests.chaos.proxy import Proxy
from tests.chaos.schedule import AGENTS, SESSION_SECONDS, STREAMS

PARTITIONS = 6
RESTART_SECONDS, RESTART_MAX_SECONDS, STEADY_SECONDS = 1.0, 8.0, 15.0
"""How long the supervisor waits before it starts a worker again that ended by itself: twice as long each time, unless
it ran this long. Otherwise workers whose broker is away would take all of the machine from the broker that starts."""
READY_SECONDS = 60.0
LEASE_SECONDS = 15.0
CALL_LEASE_SECONDS = 30.0

WORKERS = {
    # Shorter than in production, so that what takes a lease or a snapshot happens many times in a run.
    "CALLYARD_STREAM_SESSION_SECONDS": f"{SESSION_SECONDS:g}",
    "CALLYARD_POLICY_REGISTRATION_LEASE_SECONDS": f"{LEASE_SECONDS:g}",
    "CALLYARD_POLICY_CALL_LEASE_SECONDS": f"{CALL_LEASE_SECONDS:g}",
    "CALLYARD_POLICY_BACKOFF_MAX_SECONDS": "4",
    "CALLYARD_NODE_RENEW_SECONDS": f"{LEASE_SECONDS / 3:g}",
    "CALLYARD_NODE_SNAPSHOT_SECONDS": "5",
    "CALLYARD_ESL_CONNECT_TIMEOUT_SECONDS": "2",
    "CALLYARD_ESL_RECONNECT_MAX_SECONDS": "1",
    "CALLYARD_GATEWAY_RENEW_SECONDS": f"{CALL_LEASE_SECONDS / 3:g}",
    "CALLYARD_GATEWAY_SNAPSHOT_SECONDS": "10",
    # Full, so that a leg at a node and a record can be told apart from those of other callers.
    "CALLYARD_GATEWAY_CALLER_NUMBER": "full",
    "CALLYARD_AMI_CONNECT_TIMEOUT_SECONDS": "2",
    "CALLYARD_AMI_RECONNECT_MAX_SECONDS": "1",
}
BROKER = {"group.min.session.timeout.ms": "1000"}


class Keeper:
    """Keeps one worker running, and counts how often it ended by itself."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.ended_alone: list[tuple[float, str]] = []
        """When (seconds since 1970-01-01 UTC) and how."""
        self._down_seconds: float | None = None
        self._runs = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Start it, and again whenever it ends."""
        self._task = asyncio.create_task(self._keep(), name=f"keep {self.child.name}")

    async def _keep(self) -> None:
        again = RESTART_SECONDS / 2
        while True:
            self.child.start()
            began = time.monotonic()
            self._runs.set()
            await self.child.wait()
            self._runs.clear()
            pause, self._down_seconds = self._down_seconds, None
            if pause is None:
                self.ended_alone.append((time.time(), self.child.ended()))
                steady = time.monotonic() - began > STEADY_SECONDS
                again = RESTART_SECONDS if steady else min(2 * again, RESTART_MAX_SECONDS)
                pause = again
            await asyncio.sleep(pause)

    async def up(self) -> None:
        """Wait until a process of it runs, ready or not."""
        await self._runs.wait()

    async def kill(self, down_seconds: float) -> None:
        """SIGKILL; it starts again after so many seconds."""
        await self.up()
        self._down_seconds = down_seconds
        self._runs.clear()
        # Who starts it again awaits its end: after a short pause one would wait here for the end of the next run.
        self.child.send_signal(signal.SIGKILL)

    async def freeze(self) -> None:
        """SIGSTOP."""
        await self.up()
        self.child.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self.child.send_signal(signal.SIGCONT)

    async def ready(self, seconds: float = READY_SECONDS) -> None:
        """Wait until a run of it is ready, however often it has to be started. Raises `CommandError`."""
        deadline = time.monotonic() + seconds
        while True:
            left = deadline - time.monotonic()
            await self.up()  # or the end of the run before would be read
            try:
                await self.child.ready(max(0.1, left))
            except ProcessError as error:
                if left <= 0:
                    raise CommandError(str(error)) from None
                await asyncio.sleep(RESTART_SECONDS / 4)
            else:
                return

    async def end(self) -> None:
        """End it for good, in order."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self.thaw()
        await self.child.stop()


@dataclasses.dataclass
class Node:
    """A node: FreeSWITCH's double, its SIP side, and its hook behind a proxy."""

    name: str
    freeswitch: freeswitch.FreeSwitch
    sip: sipp.Node
    hook: Keeper
    esl: Proxy


@dataclasses.dataclass
class Site:
    """Everything that runs."""

    directory: Path
    kafka: embedded.EmbeddedKafka
    settings: KafkaSettings
    """Past all proxies."""
    gateway: asterisk.Gateway
    streams: list[Keeper]
    agents: list[Keeper]
    nodes: list[Node]
    stream_kafka: list[Proxy]
    agent_kafka: list[Proxy]
    ami: list[Proxy]

    @property
    def entrance(self) -> tuple[str, int]:
        """Where callers call: the gateway's address and UDP port."""
        return self.gateway.sip_host, self.gateway.sip_port

    @property
    def keepers(self) -> list[Keeper]:
        return [*self.streams, *self.agents, *(node.hook for node in self.nodes)]

    async def healed(self) -> None:
        """Make everything well again, and wait until all of it is ready. Raises `CommandError`."""
        for one in (*self.stream_kafka, *self.agent_kafka, *self.ami, *(node.esl for node in self.nodes)):
            one.heal()
        if not self.kafka.running:
            await restart_broker(self.kafka)
        await asyncio.gather(*(keeper.ready() for keeper in self.keepers))

    def ended_alone(self) -> dict[str, int]:
        """How often each worker ended by itself."""
        return {keeper.child.name: len(keeper.ended_alone) for keeper in self.keepers}


def _agent(ami: AmiSettings, port: int) -> dict[str, str]:
    return {**agent_environment(ami, port), "CALLYARD_LOG_LEVEL": "debug"}  # tells of each redirect


async def restart_broker(kafka: embedded.EmbeddedKafka, tries: int = 3) -> None:
    """Start the broker that was killed; another process may hold its port for a moment."""
    for left in reversed(range(tries)):
        try:
            await kafka.start()
        except CommandError:
            if not left:
                raise
            await asyncio.sleep(1)
        else:
            return


@asynccontextmanager
async def running(directory: Path, nodes: int, seed: int = 0) -> AsyncIterator[Site]:
    """Run it in a directory. Raises `CommandError` for a part that doesn't come up."""
    async with contextlib.AsyncExitStack() as stack:
        listeners: list[embedded.Listener] = []

        async def kafka_proxy(number: int) -> Proxy:
            port = free_port(embedded.HOST)
            made = await stack.enter_async_context(proxy.running(lambda: port, seed + number))
            listeners.append(embedded.Listener(port, made.port))
            return made

        stream_kafka = [await kafka_proxy(number) for number in range(STREAMS)]
        agent_kafka = [await kafka_proxy(STREAMS + number) for number in range(AGENTS)]
        kafka = await stack.enter_async_context(
            embedded.running(directory / "kafka", listeners=listeners, properties=BROKER)
        )
        settings = KafkaSettings(bootstrap_servers=kafka.bootstrap_servers, partitions=PARTITIONS)
        await ensure(settings)
        # Nodes see the full number: it names the caller.
        gateway = await stack.enter_async_context(asterisk.running(directory / "asterisk", caller_id="full"))
        ami = [
            await stack.enter_async_context(proxy.running(lambda: gateway.ami.port, seed + 100 + number))
            for number in range(AGENTS)
        ]

        def keeper(command: str, name: str, kafka_port: int, environment: Mapping[str, str]) -> Keeper:
            common = {
                **WORKERS,
                "CALLYARD_KAFKA_BOOTSTRAP_SERVERS": f"{embedded.HOST}:{kafka_port}",
                "CALLYARD_KAFKA_PARTITIONS": str(PARTITIONS),
            }
            child = worker(command, environment={**common, **environment}, log=directory / f"{name}.log")
            child.name = name
            made = Keeper(child)
            stack.push_async_callback(made.end)
            return made

        streams = [keeper("stream", f"stream-{n + 1}", stream_kafka[n].port, {}) for n in range(STREAMS)]
        agents = [
            keeper("agent", f"agent-{n + 1}", agent_kafka[n].port, _agent(gateway.ami, ami[n].port))
            for n in range(AGENTS)
        ]
        made: list[Node] = []
        for number in range(nodes):
            name = f"node-{number + 1}"
            control = await stack.enter_async_context(freeswitch.FreeSwitch())
            sip = await stack.enter_async_context(sipp.node(directory / name, name=name))
            esl = await stack.enter_async_context(proxy.running(lambda c=control: c.port, seed + 200 + number))  # type: ignore[misc]
            hook = keeper("hook", f"hook-{name}", kafka.port, hook_environment(name, control, sip, esl.port))
            made.append(Node(name, control, sip, hook, esl))
        site = Site(directory, kafka, settings, gateway, streams, agents, made, stream_kafka, agent_kafka, ami)
        for one in site.keepers:
            one.begin()
        await asyncio.gather(*(one.ready() for one in site.keepers))
        yield site
