"""Why no Kafka answers, in words: each server is tried once more, alone, and what fails there is named.

aiokafka only says that it found none; what the server's certificate, TLS or the password have to do with it stays in
its log. Asked only after a client failed, so it costs nothing otherwise.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from typing import Any, NamedTuple

from aiokafka.conn import create_conn
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    IllegalSaslStateError,
    KafkaConnectionError,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)
from aiokafka.protocol.metadata import MetadataRequest

from callyard.settings import SASL_PROTOCOLS, SSL_PROTOCOLS, KafkaSettings

TRY_SECONDS = 3.0
_EXPIRED, _OTHER_NAMES = 10, {62, 64}
"""OpenSSL's X509_V_ERR_CERT_HAS_EXPIRED, _HOSTNAME_MISMATCH and _IP_ADDRESS_MISMATCH."""


async def trouble(settings: KafkaSettings, arguments: Mapping[str, Any], error: Exception) -> str:
    """What keeps this client from each of its servers, and what to do; ``error`` is what the client said.

    ``arguments``: by which it connects (`callyard.clients.connection`).
    """
    if isinstance(error, ClusterAuthorizationFailedError):
        # Whoever may write to any topic may have a producer id.
        return (
            f"Kafka at {settings.bootstrap_servers} lets this client write nothing: give it the rights of its role"
            " ('callyard rights' prints them; docs/security.md)"
        )
    servers: list[str] = arguments["bootstrap_servers"]
    found = await asyncio.gather(*(_try(settings, arguments, server) for server in servers))
    pairs = zip(servers, found, strict=True)
    told = [f"{server}: {why.text}" if len(servers) > 1 else why.text for server, why in pairs if why]
    if any(why is None or why.answers for why in found):
        said = "; ".join(told) or f"{error or type(error).__name__}; asked again, it answered"
        return f"Kafka at {settings.bootstrap_servers} can't be used: {said}"
    return (
        f"no Kafka answers at {settings.bootstrap_servers} ({'; '.join(told)}): check"
        f" {settings.variable('bootstrap_servers')} and that it runs; 'callyard kafka' starts an embedded one"
    )


class _Why(NamedTuple):
    """Why a server can't be used, and whether something answered there at all."""

    text: str
    answers: bool = True


async def _try(settings: KafkaSettings, arguments: Mapping[str, Any], server: str) -> _Why | None:
    """Why this server can't be used; None where it can."""
    host, _, port = server.rpartition(":")
    more = {name: value for name, value in arguments.items() if name != "bootstrap_servers"}
    seconds = min(TRY_SECONDS, settings.request_timeout_ms / 1000)
    more["request_timeout_ms"] = round(seconds * 1000)
    try:
        made = await asyncio.wait_for(create_conn(host.strip("[]"), int(port), **more), 2 * seconds)
        try:
            # With TLS 1.3 the broker's word on this client's certificate comes after the handshake.
            await made.send(MetadataRequest([]))
        finally:
            made.close()
    except (OSError, KafkaError, asyncio.TimeoutError) as error:
        return await _words(settings, error, host.strip("[]"), int(port), seconds)
    return None


async def _words(settings: KafkaSettings, error: BaseException, host: str, port: int, seconds: float) -> _Why:
    cause = error.__cause__ if isinstance(error, KafkaConnectionError) and error.__cause__ else error
    said = _password(settings, error) or _certificate(settings, cause)
    if said:
        return _Why(said)
    if isinstance(cause, asyncio.TimeoutError):
        return _Why(f"nothing within {seconds:g} s", answers=False)
    if isinstance(cause, OSError) and not isinstance(cause, _BROKEN_OFF):
        return _Why(_said(cause), answers=False)
    return _Why(await _other_protocol(settings, cause, host, port, seconds))


def _password(settings: KafkaSettings, error: BaseException) -> str | None:
    if isinstance(error, SaslAuthenticationFailed):
        return (
            f"it refuses user {settings.sasl_username} or the password: check {settings.variable('sasl_username')} and"
            f" {settings.variable('sasl_password')}, and that the user exists for {settings.sasl_mechanism}"
        )
    if isinstance(error, UnsupportedSaslMechanismError):
        return f"it doesn't take {settings.sasl_mechanism}: check {settings.variable('sasl_mechanism')}"
    if isinstance(error, IllegalSaslStateError):
        return f"it takes no user and password on this port, and {_is_set(settings)}"
    return None


def _certificate(settings: KafkaSettings, cause: BaseException) -> str | None:
    if isinstance(cause, ssl.SSLCertVerificationError):
        return _brokers(settings, cause)
    if isinstance(cause, ssl.SSLError) and "ALERT" in (cause.reason or ""):
        return _ours(settings, cause.reason or "")
    return None


async def _other_protocol(settings: KafkaSettings, cause: BaseException, host: str, port: int, seconds: float) -> str:
    """What a server means that takes connections and breaks them off."""
    if settings.security_protocol not in SSL_PROTOCOLS:
        if await _speaks_tls(host, port, seconds):
            return f"it speaks TLS on this port, and {_is_set(settings)}"
    elif isinstance(cause, _BROKEN_OFF):
        return f"it speaks no TLS on this port, and {_is_set(settings)}"
    if settings.security_protocol not in SASL_PROTOCOLS:
        return f"it breaks off: it may want a user and a password, and {_is_set(settings)}"
    return f"it breaks off ({_said(cause)}), and {_is_set(settings)}"


def _is_set(settings: KafkaSettings) -> str:
    return f"{settings.variable('security_protocol')} is {settings.security_protocol.value}"


_BROKEN_OFF = (ConnectionResetError, BrokenPipeError, ssl.SSLError)


async def _speaks_tls(host: str, port: int, seconds: float) -> bool:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # only whether it is TLS is asked; nothing is said to it
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port, ssl=context), seconds)
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")
    except (OSError, asyncio.TimeoutError):
        return False
    writer.close()
    return True


def _brokers(settings: KafkaSettings, error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code == _EXPIRED:
        return "its certificate, or that of its CA, has expired: renew it at the broker"
    if error.verify_code in _OTHER_NAMES:
        return (
            f"its certificate is for another name ({error.verify_message}): use its name in"
            f" {settings.variable('bootstrap_servers')}, or put this one into the certificate"
        )
    return (
        f"its certificate is signed by nobody that is trusted ({error.verify_message}): name its CA's certificate in"
        f" {settings.variable('ssl_cafile')}"
    )


def _ours(settings: KafkaSettings, reason: str) -> str:
    files = f"{settings.variable('ssl_certfile')} and {settings.variable('ssl_keyfile')}"
    if not settings.ssl_certfile:
        return f"it asks for a client's certificate: set {files}"
    return f"it refuses this client's certificate ({reason.lower().replace('_', ' ')}): check {files}"


def _said(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)) or type(error).__name__
