"""Sets aside what a source said and nobody can read, so that operators can look at it; never a reason to stop.

Rubbish must not hold up anything else: at most `MOST_WAITING` pieces of `MOST_WAITING_BYTES` together wait for Kafka,
further ones are only counted.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

import structlog
from aiokafka.errors import KafkaError
from prometheus_client import Counter

from callyard.sending import REJECTED, Sender

log = structlog.get_logger(__name__)

ESL, REDIS, GET_MEETINGS = "esl", "redis", "getMeetings"
MOST_WAITING = 100
MOST_WAITING_BYTES = 32 * 1024 * 1024
"""Twice the largest frame."""

DROPPED = Counter("callyard_hook_rejected_dropped", "Unreadable messages that were not even set aside: too many.")


class _Piece(NamedTuple):
    source: str
    reason: str
    value: bytes


class Aside:
    """Where unreadable messages go; without a sender (a dry run) into the log only."""

    def __init__(self, sender: Sender | None) -> None:
        self._sender = sender
        self._pieces: asyncio.Queue[_Piece] = asyncio.Queue(MOST_WAITING)
        self._bytes = 0

    def put(self, reason: str, value: bytes, source: str = ESL) -> None:
        """Set one aside that ``source`` said; returns at once."""
        if self._pieces.full() or self._bytes + len(value) > MOST_WAITING_BYTES:
            DROPPED.inc()
            return
        self._pieces.put_nowait(_Piece(source, reason, value))
        self._bytes += len(value)
        log.warning("set aside what FreeSWITCH said" if source == ESL else "set aside what BigBlueButton said",
                    reason=reason, begins=repr(value[:80]))  # fmt: skip

    async def run(self) -> None:
        """Deliver what was set aside, for ever."""
        while True:
            piece = await self._pieces.get()
            await self._deliver(piece)
            self._bytes -= len(piece.value)

    async def _deliver(self, piece: _Piece) -> None:
        if self._sender is None:
            REJECTED.labels(piece.source).inc()
            return
        try:
            await self._sender.reject(piece.source, piece.reason, piece.value)
        except KafkaError as error:
            log.warning("Kafka did not take what was set aside", reason=piece.reason, error=repr(error))
