"""A hook as tests run it: a process of its own, between the double of FreeSWITCH and the real Kafka."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson

from callyard import topics
from callyard.processes import Child, worker
from callyard.records import REGISTRATIONS, ConferenceRegistered, RegistrationRecord, parse
from callyard.settings import KafkaSettings
from tests.support import kafka

NODE = {
    "CALLYARD_NODE_ID": "node-1",
    "CALLYARD_NODE_SIP_URI": "sip:{conference}@192.0.2.7:5060;transport=tcp",
    "CALLYARD_ESL_PASSWORD": "ClueCon",
}


def hook(settings: KafkaSettings | None, port: int, log: Path, *arguments: str, **more: str) -> Child:
    """A hook that is not started yet; ``more``: further settings, for example ``NODE_RENEW_SECONDS="1"``."""
    environment = {
        **NODE,
        **({} if settings is None else kafka.environment(settings)),
        "CALLYARD_ESL_PORT": str(port),
        **{f"CALLYARD_{key}": value for key, value in more.items()},
    }
    return worker("hook", *arguments, environment=environment, log=log)


@asynccontextmanager
async def running(child: Child) -> AsyncIterator[Child]:
    """The hook, started and ready; ended at the end."""
    child.start()
    try:
        await child.ready(20)
        yield child
    finally:
        await child.stop()


async def registrations(
    settings: KafkaSettings, enough: int | Callable[[list[RegistrationRecord]], bool] | None = None, timeout: float = 20
) -> list[RegistrationRecord]:
    """The records on callyard.registrations, oldest first, once there are enough of them."""
    name = topics.topics(settings).registrations.name
    condition = (lambda found: enough([read(record) for record in found])) if callable(enough) else enough
    return [read(record) for record in await kafka.read(settings, name, enough=condition, timeout=timeout)]


def read(record: Any) -> RegistrationRecord:
    """One record, checked against its key."""
    parsed = parse(REGISTRATIONS, record.value)
    assert record.key == parsed.conference.encode()
    return parsed


def words(record: RegistrationRecord) -> str:
    """A record as the tests write it."""
    if isinstance(record, ConferenceRegistered):
        return f"+ {record.conference} {record.instance_id}"
    return f"- {record.conference} {record.instance_id} {record.reason.value}"


def events(child: Child, event: str) -> list[dict[str, Any]]:
    """What the hook logged under this event."""
    logged = [orjson.loads(line) for line in child.lines() if line.startswith("{")]
    return [fields for fields in logged if fields.get("event") == event]
