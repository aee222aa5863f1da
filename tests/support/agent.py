"""A gateway's agent as a process, and what it says on the bus."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import orjson

from callyard import topics
from callyard.processes import Child, worker
from callyard.records import CALLS, CallRecord, DialInstruction, Source, parse
from callyard.settings import AmiSettings, KafkaSettings
from tests.support import kafka

GATEWAY = "gw-1"


def agent(settings: KafkaSettings, ami: AmiSettings, log: Path, gateway_id: str = GATEWAY, **more: str) -> Child:
    """The agent of a gateway, not started yet. ``more`` are settings by their variables without the prefix."""
    return worker(
        "agent",
        environment={
            **kafka.environment(settings),
            "CALLYARD_GATEWAY_ID": gateway_id,
            "CALLYARD_GATEWAY_NODES": "127.0.0.1,192.0.2.0/24",
            "CALLYARD_AMI_HOST": ami.host,
            "CALLYARD_AMI_PORT": str(ami.port),
            "CALLYARD_AMI_USERNAME": ami.username,
            "CALLYARD_AMI_SECRET": ami.secret.get_secret_value(),
            "CALLYARD_AMI_RECONNECT_MAX_SECONDS": "0.5",
            "CALLYARD_LOG_LEVEL": "debug",
            **{f"CALLYARD_{name}": value for name, value in more.items()},
        },
        log=log,
    )


@asynccontextmanager
async def running(*children: Child) -> AsyncIterator[None]:
    """Start these, wait until each is ready, stop them at the end."""
    async with AsyncExitStack() as stack:
        for child in children:
            child.start()
            stack.push_async_callback(child.stop)
            await child.ready(30)
        yield


def logged(child: Child, event: str) -> list[dict[str, Any]]:
    """The fields of all events of one name in a worker's log."""
    lines = [orjson.loads(line) for line in child.lines() if line.startswith("{")]
    return [fields for fields in lines if fields["event"] == event]


async def said(
    settings: KafkaSettings, conference: str, enough: Callable[[list[CallRecord]], bool], timeout: float = 20
) -> list[CallRecord]:
    """What agents say of a conference's callers, in order, as soon as it is enough."""

    def of_it(records: Sequence[Any]) -> list[CallRecord]:
        parsed = [parse(CALLS, record.value) for record in records]
        return [record for record in parsed if record.conference == conference]

    name = topics.topics(settings).calls.name
    return of_it(await kafka.read(settings, name, enough=lambda records: enough(of_it(records)), timeout=timeout))


def has(*types: str) -> Callable[[list[CallRecord]], bool]:
    """Whether records of all these types are there."""
    return lambda records: set(types) <= {record.type for record in records}


def types(records: Sequence[CallRecord]) -> list[str]:
    return [record.type for record in records]


def dial(call: CallRecord, sip_uri: str, attempt: int = 1, **changes: Any) -> DialInstruction:
    """What the stream would instruct for this call, with a long deadline."""
    now_ms = time.time_ns() // 1_000_000
    values: dict[str, Any] = {
        "gateway_id": call.gateway_id,
        "call_id": call.call_id,
        "conference": call.conference,
        "stay": call.stay,
        "attempt": attempt,
        "sip_uri": sip_uri,
        "node_id": "node-1",
        "source": Source.FREESWITCH,
        "instance_id": "instance-1",
        "issued_at_ms": now_ms,
        "deadline_ms": now_ms + 60_000,
        "partition": 0,
        "epoch": 1,
    }
    return DialInstruction(**{**values, **changes})


async def instruct(settings: KafkaSettings, *instructions: DialInstruction) -> None:
    """Put instructions onto the topic, as the stream does."""
    name = topics.topics(settings).dials.name
    await kafka.send(settings, name, *((one.gateway_id, one) for one in instructions))
