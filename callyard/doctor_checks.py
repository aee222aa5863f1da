"""Checks that every machine's doctor makes: its clock, and Kafka."""

from __future__ import annotations

import ctypes

from callyard import access, clients, topics
from callyard.access import AccessError
from callyard.clients import KafkaUnreachableError
from callyard.doctor import Finding, Findings
from callyard.settings import KafkaSettings, SecurityProtocol
from callyard.topics import TopicsError


async def kernel_clock() -> list[Finding]:
    """Whether something keeps this machine's clock (adjtimex(2), which changes nothing when asked with no modes)."""
    found = Findings("clock")
    buffer = ctypes.create_string_buffer(512)  # struct timex has some 208 bytes; modes, its first field, is 0
    state = ctypes.CDLL(None, use_errno=True).adjtimex(buffer)
    if 0 <= state < _TIME_ERROR:
        found.fine("the kernel says that it is kept by NTP")
    else:
        found.warn("nothing keeps this machine's clock", "run systemd-timesyncd or chrony")
    return found.all


_TIME_ERROR = 5


async def bus(kafka: KafkaSettings, role: str, gateway: str | None = None) -> list[Finding]:
    """Kafka, what it lets this client do, and the topics as they must be."""
    found = Findings("kafka")
    try:
        async with clients.admin(kafka) as admin:
            found.fine(f"Kafka at {kafka.bootstrap_servers} answers")
            await access.check(kafka, role, gateway)
            found.fine(f"{access.name_of(kafka)} may do what role {role} must")
            if kafka.security_protocol is not SecurityProtocol.PLAINTEXT and (
                more := await access.excess(kafka, role, gateway)
            ):
                found.warn(
                    f"{access.name_of(kafka)} may do more than role {role} needs: {'; '.join(more)}",
                    "take that away (docs/security.md)",
                )
            await topics.check(admin, kafka)
            found.fine("the topics are as they must be")
    except KafkaUnreachableError as error:
        found.wrong(str(error), "check the network, TLS and credentials (CALLYARD_KAFKA_…)")
    except AccessError as error:
        for problem in error.problems:
            found.wrong(problem, f"give it the rights that 'callyard rights {role}' prints")
    except TopicsError as error:
        found.wrong(str(error), "run 'callyard topics' where its settings are right")
    return found.all
