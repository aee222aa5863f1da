"""Kafka clients: one place that turns settings into producers, consumers and admin clients.

Whatever sends a record that matters awaits its delivery: a failed delivery must be the sender's exception, never a
line in a log.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError

from callyard import header_names, reach, tasks
from callyard.settings import SASL_PROTOCOLS, SSL_PROTOCOLS, KafkaSettings, SettingsError

log = structlog.get_logger(__name__)

STOP_SECONDS = 3.0


class KafkaUnreachableError(Exception):
    """No broker answered. The text names the servers and what to check."""


def connection(settings: KafkaSettings) -> dict[str, Any]:
    """The arguments by which every aiokafka client reaches this Kafka."""
    arguments: dict[str, Any] = {
        "bootstrap_servers": [server.strip() for server in settings.bootstrap_servers.split(",")],
        "security_protocol": settings.security_protocol.value,
        "request_timeout_ms": settings.request_timeout_ms,
    }
    if settings.security_protocol in SSL_PROTOCOLS:
        arguments["ssl_context"] = ssl_context(settings)
    if settings.security_protocol in SASL_PROTOCOLS and settings.sasl_password is not None:
        arguments["sasl_mechanism"] = settings.sasl_mechanism
        arguments["sasl_plain_username"] = settings.sasl_username
        arguments["sasl_plain_password"] = settings.sasl_password.get_secret_value()
    return arguments


def ssl_context(settings: KafkaSettings) -> ssl.SSLContext:
    """TLS with the broker's certificate and name checked."""
    try:
        context = ssl.create_default_context(cafile=str(settings.ssl_cafile) if settings.ssl_cafile else None)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError([f"{settings.variable('ssl_cafile')}: no CA certificates can be loaded: {error}"]) from None
    if settings.ssl_certfile:
        try:
            # Without a password OpenSSL would ask at the terminal.
            context.load_cert_chain(settings.ssl_certfile, settings.ssl_keyfile, password="")
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(
                [
                    f"{settings.variable('ssl_certfile')} and {settings.variable('ssl_keyfile')}: a certificate and its"
                    f" key, not encrypted, cannot be loaded: {error}"
                ]
            ) from None
    return context


async def unreachable(settings: KafkaSettings, error: Exception) -> KafkaUnreachableError:
    """The error for a Kafka that can't be used, with why and what to do: found out by trying once more."""
    return KafkaUnreachableError(await reach.trouble(settings, connection(settings), error))


@asynccontextmanager
async def client(settings: KafkaSettings) -> AsyncIterator[AIOKafkaClient]:
    """Aiokafka's client below the others, for requests that they don't have."""
    made = AIOKafkaClient(**connection(settings))
    try:
        await made.bootstrap()
    except KafkaError as error:
        await made.close()
        raise await unreachable(settings, error) from None
    try:
        yield made
    finally:
        await made.close()


@asynccontextmanager
async def producer(settings: KafkaSettings, client_id: str, **more: Any) -> AsyncIterator[AIOKafkaProducer]:
    """A started producer: idempotent, all replicas acknowledge, no lingering. Flushes and stops at the end.

    What Kafka has not taken `STOP_SECONDS` after the end is given up: whoever needs to know awaited its delivery.
    """
    made = AIOKafkaProducer(
        **connection(settings), client_id=client_id, acks="all", enable_idempotence=True, linger_ms=0, **more
    )
    try:
        await made.start()
    except KafkaError as error:
        await made.stop()
        raise await unreachable(settings, error) from None
    try:
        yield made
    finally:
        try:
            await asyncio.wait_for(made.stop(), STOP_SECONDS)
        except asyncio.TimeoutError:  # an idempotent producer's stop() waits for its deliveries for ever
            log.warning("the producer ended before Kafka took everything", client_id=client_id)


@asynccontextmanager
async def consumer(settings: KafkaSettings, *topics: str, **more: Any) -> AsyncIterator[AIOKafkaConsumer]:
    """A started consumer that commits nothing by itself, and that any header names can be read by.

    What has not ended `STOP_SECONDS` after the end is given up: the group then learns by its session, as after a crash.
    """
    header_names.tolerate()
    made = AIOKafkaConsumer(*topics, **connection(settings), enable_auto_commit=False, **more)
    try:
        await made.start()
    except KafkaError as error:
        await made.stop()
        raise await unreachable(settings, error) from None
    # A task of its own that is cancelled before it has begun makes stop() a cancellation of whoever awaits it.
    await asyncio.sleep(0)
    try:
        yield made
    finally:
        try:
            # It leaves the group and closes its connections, and waits for the broker's part in both: with TLS, too.
            await tasks.within(made.stop(), STOP_SECONDS)
        except asyncio.TimeoutError:
            log.warning("the consumer ended before Kafka answered")


@asynccontextmanager
async def admin(settings: KafkaSettings) -> AsyncIterator[AIOKafkaAdminClient]:
    """A started admin client. A request within that Kafka doesn't answer is a `KafkaUnreachableError`, too."""
    made = AIOKafkaAdminClient(**connection(settings))
    try:
        await made.start()
        yield made
    except (KafkaError, asyncio.TimeoutError) as error:
        raise await unreachable(settings, error) from None
    finally:
        await made.close()
