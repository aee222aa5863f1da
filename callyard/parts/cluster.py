"""A whole Callyard on one machine, for the demo, the bench and end-to-end tests: real parts, real worker processes.

Embedded Kafka, a real Asterisk as the gateway, and for each node FreeSWITCH's double (the control side) and SIPp (the
SIP side). The stream, the agent and each node's hook are processes of their own that share nothing but Kafka, started
by the same commands as anywhere. All of it listens on 127.0.0.1 only and ends with the block.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from callyard.kafka import embedded
from callyard.parts import asterisk, freeswitch, sipp
from callyard.processes import Child, worker
from callyard.settings import AmiSettings, KafkaSettings
from callyard.topics_command import ensure

GATEWAY_ID = "gw-1"
READY_SECONDS = 60
Say = Callable[[str, float], None]
"""Called with what has come up, and the seconds that it took."""


@dataclasses.dataclass
class Node:
    """A BigBlueButton node: its FreeSWITCH's control side, its SIP side, and its hook."""

    name: str
    freeswitch: freeswitch.FreeSwitch
    sip: sipp.Node
    hook: Child


@dataclasses.dataclass
class Cluster:
    """Everything that runs. ``environment``: the variables by which a worker reaches this Kafka."""

    directory: Path
    kafka: embedded.EmbeddedKafka
    settings: KafkaSettings
    environment: Mapping[str, str]
    gateway: asterisk.Gateway
    nodes: list[Node]
    stream: Child
    agent: Child

    @property
    def entrance(self) -> tuple[str, int]:
        """Where callers call: the gateway's address and UDP port."""
        return self.gateway.sip_host, self.gateway.sip_port


@asynccontextmanager
async def running(
    directory: Path,
    *,
    nodes: int = 2,
    partitions: int = 12,
    say: Say | None = None,
    environment: Mapping[str, str] | None = None,
    **asterisk_changes: Any,
) -> AsyncIterator[Cluster]:
    """Run a cluster in ``directory``; ``environment`` adds settings to all workers.

    Raises `callyard.errors.CommandError` (with the end of its log) for a part that doesn't come up.
    """
    directory = directory.absolute()  # noqa: ASYNC240 - asks for the working directory only
    say = say or (lambda _what, _seconds: None)
    async with contextlib.AsyncExitStack() as stack:
        began = time.monotonic()
        kafka = await stack.enter_async_context(embedded.running(directory / "kafka"))
        settings = KafkaSettings(bootstrap_servers=kafka.bootstrap_servers, partitions=partitions)
        common = {
            "CALLYARD_KAFKA_BOOTSTRAP_SERVERS": settings.bootstrap_servers,
            "CALLYARD_KAFKA_PARTITIONS": str(partitions),
            **(environment or {}),
        }
        say("Kafka, one node", time.monotonic() - began)
        began = time.monotonic()
        created = await ensure(settings)
        say(f"{len(created)} topics, {partitions} partitions each", time.monotonic() - began)
        began = time.monotonic()
        gateway = await stack.enter_async_context(asterisk.running(directory / "asterisk", **asterisk_changes))
        say(f"{gateway.parts.version}, with the configuration of 'callyard render asterisk'", time.monotonic() - began)
        began = time.monotonic()
        made = [await _node(stack, directory, f"node-{number}", common) for number in range(1, nodes + 1)]
        stream = _child(stack, "stream", directory, "stream", common)
        agent = _child(stack, "agent", directory, "agent", {**common, **agent_environment(gateway.ami)})
        workers = [stream, agent, *(node.hook for node in made)]
        for child in workers:
            child.start()
        await asyncio.gather(*(child.ready(READY_SECONDS) for child in workers))
        say(f"{len(workers)} workers: stream, agent, and a hook for each of {nodes} nodes", time.monotonic() - began)
        yield Cluster(directory, kafka, settings, common, gateway, made, stream, agent)


def agent_environment(ami: AmiSettings, port: int | None = None) -> dict[str, str]:
    """The variables of the gateway's agent; ``port``: another one than Asterisk's own (a proxy's)."""
    return {
        "CALLYARD_GATEWAY_ID": GATEWAY_ID,
        "CALLYARD_AMI_HOST": ami.host,
        "CALLYARD_AMI_PORT": str(port or ami.port),
        "CALLYARD_AMI_USERNAME": ami.username,
        "CALLYARD_AMI_SECRET": ami.secret.get_secret_value(),
    }


def hook_environment(
    name: str, control: freeswitch.FreeSwitch, sip: sipp.Node, port: int | None = None
) -> dict[str, str]:
    """The variables of a node's hook; ``port``: another one than the event socket's own (a proxy's)."""
    return {
        "CALLYARD_NODE_ID": name,
        "CALLYARD_NODE_SIP_URI": sip.uri(),
        "CALLYARD_ESL_PORT": str(port or control.port),
        "CALLYARD_ESL_PASSWORD": control.password,
    }


async def _node(
    stack: contextlib.AsyncExitStack, directory: Path, name: str, environment: Mapping[str, str]
) -> Node:  # fmt: skip
    control = await stack.enter_async_context(freeswitch.FreeSwitch())
    sip = await stack.enter_async_context(sipp.node(directory / name, name=name))
    hook = _child(stack, "hook", directory, f"hook-{name}", {**environment, **hook_environment(name, control, sip)})
    return Node(name, control, sip, hook)


def _child(
    stack: contextlib.AsyncExitStack, command: str, directory: Path, name: str, environment: Mapping[str, str]
) -> Child:  # fmt: skip
    child = worker(command, environment=environment, log=directory / f"{name}.log")
    child.name = name
    stack.push_async_callback(child.stop)
    return child
