"""What an agent does while Kafka doesn't let it read its instructions: says which right is missing, once, and waits.

An operator can give a right back, so the agent goes on asking; instructions wait on the topic meanwhile.
"""

from __future__ import annotations

import asyncio
import time

import structlog
from aiokafka.errors import GroupAuthorizationFailedError, KafkaError

from callyard import access
from callyard.rights import agent_group
from callyard.settings import KafkaSettings

log = structlog.get_logger(__name__)

REFUSED_SECONDS = 1.0
"""Between two questions to a Kafka that refuses."""


class Refusals:
    """Refusals since the last time that all was permitted."""

    def __init__(self, settings: KafkaSettings, gateway_id: str, topic: str) -> None:
        self._settings = settings
        self._gateway_id = gateway_id
        self._topic = topic
        self._told: set[str] = set()
        self._last = 0.0

    @property
    def any(self) -> bool:
        return bool(self._told)

    async def refused(self, error: KafkaError) -> None:
        """Say which right is missing, and wait a moment."""
        group = isinstance(error, GroupAuthorizationFailedError)
        resource = agent_group(self._settings, self._gateway_id) if group else self._topic
        why = access.why(self._settings, "gateway", "Read", resource, error)
        self._last = time.monotonic()
        if why not in self._told:
            self._told.add(why)
            log.error("no instructions can be read; they wait", why=why)
        await asyncio.sleep(REFUSED_SECONDS)

    def permitted(self) -> None:
        """Nothing was refused just now. Between two refusals the client says nothing, too."""
        if self._told and time.monotonic() - self._last >= 3 * REFUSED_SECONDS:
            self._told.clear()
            log.info("instructions can be read again")
