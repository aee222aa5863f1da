"""Sets aside what FreeSWITCH said and nobody can read, so that operators can look at it; never a reason to stop.

Rubbish must not hold up anything else: at most `MOST_WAITING` pieces wait for Kafka, further ones are only counted.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

import structlog
from aiokafka.errors import KafkaError
from prometheus_client import Counter

from callyard.sending import REJECTED, Sender

log = structlog.get_logger(__name__)

SOURCE = "esl"
MOST_WAITING = 100

DROPPED = Counter("callyard_hook_rejected_dropped", "Unreadable messages that were not even set aside: too many.")


class _Piece(NamedTuple):
    reason: str
    value: bytes


class Aside:
    """Where unreadable messages go; without a sender (a dry run) into the log only."""

    def __init__(self, sender: Sender | None) -> None:
        self._sender = sender
        self._pieces: asyncio.Queue[_Piece] = asyncio.Queue(MOST_WAITING)

    def put(self, reason: str, value: bytes) -> None:
        """Set one aside; returns at once."""
        try:
            self._pieces.put_nowait(_Piece(reason, value))
        except asyncio.QueueFull:
            DROPPED.inc()
            return
        log.warning("set aside what FreeSWITCH said", reason=reason, begins=repr(value[:80]))

    async def run(self) -> None:
        """Deliver what was set aside, for ever."""
        while True:
            piece = await self._pieces.get()
            if self._sender is None:
                REJECTED.labels(SOURCE).inc()
                continue
            try:
                await self._sender.reject(SOURCE, piece.reason, piece.value)
            except KafkaError as error:
                log.warning("Kafka did not take what was set aside", reason=piece.reason, error=repr(error))
