"""What the brokers let this client do, beside what its role needs: asked before a worker starts, told by name.

A right that is missing shows otherwise only when it is used, which may be hours later, and then as a code. So each
worker asks first; nothing is written to find out. Where brokers tell nothing (`callyard.granted`), what they refuse is
told when it happens, in the same words.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    KafkaError,
    TopicAuthorizationFailedError,
)
from cryptography import x509
from prometheus_client import Counter

from callyard import clients, granted
from callyard.errors import CommandError
from callyard.rights import Right, rights
from callyard.settings import SASL_PROTOCOLS, SSL_PROTOCOLS, KafkaSettings
from callyard.topics import topics

DENIALS = (TopicAuthorizationFailedError, GroupAuthorizationFailedError, ClusterAuthorizationFailedError)
"""What aiokafka raises where a right is missing. An operator can give it back, so a running worker waits for that."""
REFUSED = Counter(
    "callyard_refused", "Times that Kafka refused something because this worker has no right to it.", ["resource"]
)

GROUP_SECONDS = 5.0
"""How long a group's coordinator is waited for."""
_VERBS = {"Read": "read", "Write": "write", "Describe": "look at", "DescribeConfigs": "read the settings of"}
_OF = {
    "node": "a node",
    "gateway": "a gateway",
    "stream": "the stream",
    "auditor": "an auditor",
    "scaler": "the scaler",
}


class AccessError(CommandError):
    """Rights are missing. ``problems`` names each one and says what to do."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("rights:\n" + "\n".join(f"  {problem}" for problem in problems))


class Access(NamedTuple):
    """What a role needs of a topic or group, and what the brokers allow."""

    resource: str
    needed: frozenset[str]
    allowed: frozenset[str]


def name_of(settings: KafkaSettings) -> str:
    """Whom the brokers take this client for, as far as it can know: they map certificates' names as they are set."""
    if settings.security_protocol in SASL_PROTOCOLS:
        return f"user {settings.sasl_username}"
    if settings.security_protocol in SSL_PROTOCOLS and settings.ssl_certfile:
        certificate = x509.load_pem_x509_certificate(settings.ssl_certfile.read_bytes())
        return f"the certificate {certificate.subject.rfc4514_string()}"
    return "a client without a name"


def lacks(settings: KafkaSettings, role: str, operation: str, resource: str) -> str:
    """That a right is missing, and what to do."""
    return (
        f"{name_of(settings)} may not {_VERBS[operation]} {resource}: give it the rights of {_OF[role]}"
        f" ('callyard rights {role}' prints the commands; docs/security.md)"
    )


def why(settings: KafkaSettings, role: str, operation: str, resource: str, error: BaseException) -> str:
    """An error of a running worker in words; as `lacks` where a right is missing, which is counted.

    ``resource``: unless the error names another.
    """
    if not isinstance(error, DENIALS):
        return repr(error)
    named = error.args[0] if isinstance(error, TopicAuthorizationFailedError) and error.args else resource
    name = named if isinstance(named, str) else ", ".join(sorted(named))
    REFUSED.labels(name).inc()
    return lacks(settings, role, operation, name)


async def check(settings: KafkaSettings, role: str, gateway: str | None = None) -> None:
    """Raise `AccessError` where the brokers don't let this client do what its role must.

    Topics that don't exist are not looked at. Raises `KafkaUnreachableError`, too.
    """
    missing: dict[str, list[str]] = {}
    for access in await compare(settings, role, gateway):
        for operation in access.needed - access.allowed:
            missing.setdefault(operation, []).append(access.resource)
    if missing:
        raise AccessError(
            [lacks(settings, role, operation, ", ".join(names)) for operation, names in sorted(missing.items())]
        )


async def excess(settings: KafkaSettings, role: str, gateway: str | None = None) -> list[str]:
    """What the brokers let this client do beyond what its role needs, in words, by topic and group."""
    found = []
    for access in await compare(settings, role, gateway):
        # Who may read or write may describe.
        more = access.allowed - access.needed - ({"Describe"} if access.needed else set())
        if more:
            found.append(f"{', '.join(sorted(more))} on {access.resource}")
    return found


async def check_reading(settings: KafkaSettings, names: Iterable[str]) -> None:
    """Raise `AccessError` where the brokers don't let this client read one of these topics."""
    async with clients.client(settings) as client:
        try:
            found = await granted.on_topics(client, names)
        except KafkaError as error:
            raise await clients.unreachable(settings, error) from None
    missing = sorted(name for name, allowed in found.items() if "Read" not in allowed)
    if missing:
        raise AccessError([lacks(settings, "auditor", "Read", ", ".join(missing))])


async def compare(settings: KafkaSettings, role: str, gateway: str | None = None) -> list[Access]:
    """Each topic, and each group of the role, with what is needed and what is allowed there."""
    wanted = rights(settings, gateway)[role]
    names = [topic.name for topic in topics(settings).all]
    async with clients.client(settings) as client:
        try:
            on_topics = await granted.on_topics(client, names)
            found = [Access(name, _needed(wanted, name), on_topics[name]) for name in names if name in on_topics]
            for right in wanted:
                if right.resource == "group" and right.pattern == "literal":
                    allowed = await granted.on_group(client, right.name, GROUP_SECONDS)
                    if allowed is not None:
                        found.append(Access(right.name, frozenset(right.operations), allowed))
        except KafkaError as error:
            raise await clients.unreachable(settings, error) from None
    return found


def _needed(wanted: Iterable[Right], topic: str) -> frozenset[str]:
    return frozenset(
        operation
        for right in wanted
        if right.resource == "topic" and right.name == topic
        for operation in right.operations
    )
