"""Several gateways on real parts: an Asterisk with two agents each, two stream workers, two nodes, one Kafka."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from callyard.parts import asterisk, freeswitch, sipp
from callyard.parts.cluster import hook_environment
from callyard.processes import Child, free_port, worker
from callyard.settings import KafkaSettings
from tests.support import agent as agents
from tests.support import kafka as on_kafka
from tests.support.probes import metric
from tests.support.wait import until

LEASE_SECONDS = 10.0
"""Of a call: longer than the takeover by another agent, short enough to be waited for."""
CALLERS = itertools.count(1)


class Worker:
    """A worker's process and its health port."""

    def __init__(self, child: Child, port: int) -> None:
        self.child = child
        self.port = port

    async def metric(self, series: str) -> float:
        """One of its metrics; 0 where it isn't there."""
        return await metric(self.port, series) or 0


@dataclass
class Gateway:
    """An Asterisk and its agents."""

    id: str
    asterisk: asterisk.Gateway
    agents: list[Worker]
    stack: contextlib.AsyncExitStack

    async def owner(self) -> Worker:
        """The agent that speaks, as soon as one does. Fails where two do."""

        async def speaking() -> list[Worker]:
            running = [one for one in self.agents if one.child.running]
            return [one for one in running if await one.metric("callyard_agent_owner") == 1]

        [owner] = await until(speaking, what=f"one agent of {self.id} speaks")
        return owner

    async def redirects(self) -> dict[int, float]:
        """How many redirects each agent that runs has made, by its port."""
        series = 'callyard_agent_instructions_total{outcome="applied"}'
        return {one.port: await one.metric(series) for one in self.agents if one.child.running}


@dataclass
class Site:
    """Everything that runs."""

    directory: Path
    settings: KafkaSettings
    environment: Mapping[str, str]
    stack: contextlib.AsyncExitStack
    streams: list[Worker] = field(default_factory=list)
    nodes: list[tuple[freeswitch.FreeSwitch, sipp.Node]] = field(default_factory=list)
    gateways: dict[str, Gateway] = field(default_factory=dict)

    def worker(self, command: str, name: str, more: Mapping[str, str]) -> Worker:
        """A worker that is started, not ready yet."""
        port = free_port()
        environment = {**self.environment, **more, "CALLYARD_HEALTH_PORT": str(port)}
        child = worker(command, environment=environment, log=self.directory / f"{name}.log")
        child.name = name
        child.start()
        return Worker(child, port)

    async def add_gateway(self, gateway_id: str) -> Gateway:
        """Another gateway, ready to take calls; ended with the site, or by `remove_gateway`."""
        stack = contextlib.AsyncExitStack()
        self.stack.push_async_callback(stack.aclose)
        gateway = await stack.enter_async_context(asterisk.running(self.directory / gateway_id))
        children = []
        for number in (1, 2):
            made = agents.agent(self.settings, gateway.ami, self.directory / f"{gateway_id}-{number}.log", gateway_id,
                                GATEWAY_RENEW_SECONDS=str(LEASE_SECONDS / 4),
                                HEALTH_PORT=str(port := free_port()))  # fmt: skip
            made.name = f"{gateway_id}-{number}"
            made.start()
            stack.push_async_callback(made.stop)
            children.append(Worker(made, port))
        for one in children:
            await one.child.ready(60)
        self.gateways[gateway_id] = made_gateway = Gateway(gateway_id, gateway, children, stack)
        return made_gateway

    async def remove_gateway(self, gateway_id: str) -> None:
        """End a gateway in order: its agents, then its Asterisk."""
        await self.gateways.pop(gateway_id).stack.aclose()

    @asynccontextmanager
    async def callers(self, gateway_id: str, conference: str, count: int = 1) -> AsyncIterator[sipp.Sipp]:
        """Callers at a gateway who have entered a number; hung up at the end."""
        gateway, name = self.gateways[gateway_id].asterisk, f"callers-{next(CALLERS)}"
        calls = [sipp.Call(f"+49301{number:06}", f"{conference}#") for number in range(count)]
        entrance = (gateway.sip_host, gateway.sip_port)
        async with sipp.calling(self.directory / name, entrance, calls, name=name, rate=50) as made:
            await made.saw("answered", count, timeout=20)
            yield made


@asynccontextmanager
async def running(directory: Path, settings: KafkaSettings) -> AsyncIterator[Site]:
    """The site, with gateways ``gw-1`` and ``gw-2``."""
    async with contextlib.AsyncExitStack() as stack:
        await on_kafka.create_topics(settings)
        environment = {
            **on_kafka.environment(settings),
            "CALLYARD_POLICY_CALL_LEASE_SECONDS": str(LEASE_SECONDS),
            "CALLYARD_NODE_RENEW_SECONDS": "5",
        }
        site = Site(directory, settings, environment, stack)
        started = []
        for number in (1, 2):
            control = await stack.enter_async_context(freeswitch.FreeSwitch())
            sip = await stack.enter_async_context(sipp.node(directory / f"node-{number}", name=f"node-{number}"))
            site.nodes.append((control, sip))
            hook = site.worker("hook", f"hook-{number}", hook_environment(f"node-{number}", control, sip))
            stack.push_async_callback(hook.child.stop)
            stream = site.worker("stream", f"stream-{number}", {})
            stack.push_async_callback(stream.child.stop)
            site.streams.append(stream)
            started += [hook, stream]
        for one in started:
            await one.child.ready(60)
        await site.add_gateway("gw-1")
        await site.add_gateway("gw-2")
        yield site
