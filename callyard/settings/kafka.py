"""Which Kafka the workers speak to, how they prove who they are, and how the topics are laid out."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, SecretStr, field_validator, model_validator

from callyard.settings.groups import Group

REPLAY_PREFIX = "replay-"
"""Begins the topic prefix of a Callyard that inputs are replayed into."""

_SERVER = re.compile(r"([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]):(?P<port>[0-9]{1,5})")


class SecurityProtocol(str, Enum):
    """How to speak to Kafka."""

    PLAINTEXT = "PLAINTEXT"
    SSL = "SSL"
    SASL_PLAINTEXT = "SASL_PLAINTEXT"
    SASL_SSL = "SASL_SSL"


SASL_PROTOCOLS = frozenset({SecurityProtocol.SASL_PLAINTEXT, SecurityProtocol.SASL_SSL})
SSL_PROTOCOLS = frozenset({SecurityProtocol.SSL, SecurityProtocol.SASL_SSL})


class KafkaSettings(Group):
    """Which Kafka, and how the topics are laid out."""

    table: ClassVar[str] = "kafka"

    bootstrap_servers: str = Field("127.0.0.1:9092", description="Brokers as host:port, comma-separated.")
    security_protocol: SecurityProtocol = Field(
        SecurityProtocol.PLAINTEXT, description="PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL."
    )
    ssl_cafile: Path | None = Field(None, description="CA certificates (PEM) that the brokers are checked against.")
    ssl_certfile: Path | None = Field(None, description="This client's certificate (PEM), for mutual TLS.")
    ssl_keyfile: Path | None = Field(None, description="This client's key (PEM), for mutual TLS.")
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "SCRAM-SHA-512", description="With SASL_…: the mechanism."
    )
    sasl_username: str | None = Field(None, description="With SASL_…: the user name.")
    sasl_password: SecretStr | None = Field(None, description="With SASL_…: the password.")
    topic_prefix: str = Field(
        "callyard", pattern=r"^[a-z][a-z0-9-]{0,30}$",
        description="First part of all topic and consumer group names. One that begins with replay- is marked for"
        " replays: there a header tells when an input was first written, and recorded deadlines are the only ones.",
    )  # fmt: skip
    partitions: int = Field(
        12, ge=1, le=1000, description="Partitions of the topics keyed by conference: the most stream workers of use."
    )
    replication_factor: int = Field(1, ge=1, le=7, description="Replicas of each topic; 3 in production.")
    retention_days: float = Field(
        30, gt=0, le=3650,
        description="Days that inputs, journal and rejected records are kept for audits, where their own setting says"
        " nothing else.",
    )  # fmt: skip
    registrations_retention_days: float | None = Field(
        None, gt=0, le=3650, description="Days that registrations are kept; default: retention_days."
    )
    calls_retention_days: float | None = Field(
        None, gt=0, le=3650, description="Days that the gateways' records of calls are kept; default: retention_days."
    )
    journal_retention_days: float | None = Field(
        None, gt=0, le=3650, description="Days that the journal is kept; default: retention_days."
    )
    rejected_retention_days: float | None = Field(
        None, gt=0, le=3650, description="Days that rejected records are kept; default: retention_days."
    )
    request_timeout_ms: int = Field(
        10_000, ge=500, le=120_000, description="Milliseconds until a request to Kafka that got no answer has failed."
    )

    @property
    def replayed(self) -> bool:
        """Whether these topics are marked for replays: there, and nowhere else, a header tells an input's time."""
        return self.topic_prefix.startswith(REPLAY_PREFIX)

    def retention_days_of(self, topic: Literal["registrations", "calls", "journal", "rejected"]) -> float:
        """Days that this topic is kept."""
        own: float | None = getattr(self, f"{topic}_retention_days")
        return self.retention_days if own is None else own

    @field_validator("bootstrap_servers")
    @classmethod
    def _servers(cls, value: str) -> str:
        for server in value.split(","):
            found = _SERVER.fullmatch(server.strip())
            if found is None or not 0 < int(found["port"]) < 65536:
                raise ValueError(f"{server.strip()!r} is not host:port")
        return value

    @model_validator(mode="after")
    def _sasl_is_complete(self) -> KafkaSettings:
        if self.security_protocol in SASL_PROTOCOLS and (not self.sasl_username or self.sasl_password is None):
            raise ValueError(
                f"{self.variable('security_protocol')} is {self.security_protocol.value}:"
                f" {self.variable('sasl_username')} and {self.variable('sasl_password')} (or …_FILE) must be set, too"
            )
        return self
