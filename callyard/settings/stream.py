"""How a stream worker runs, what it decides by, and whose key its journal is sealed with."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, SecretStr, field_validator

from callyard.nodes import AllowedNodes
from callyard.settings.groups import Group


class StreamSettings(Group):
    """How a stream worker runs (what it decides by is the group ``policy``)."""

    table: ClassVar[str] = "stream"

    session_seconds: float = Field(
        6, ge=1, le=60, description="Seconds without a heartbeat after which another worker takes over."
    )
    group_limit: int = Field(500, ge=1, le=5000, description="Most inputs that are decided and written as one batch.")
    tick_seconds: float = Field(0.25, gt=0, le=10, description="Seconds between two looks at which deadlines are due.")
    snapshot_seconds: float = Field(
        3600, ge=10, le=86400 * 7,
        description="Seconds after which a desk is put whole into the journal before it changes again, so that a past"
        " moment is restored without what was before; the journal is kept at least twice as long.",
    )  # fmt: skip

    @property
    def lookback_ms(self) -> int:
        """How long before a moment the journal surely has each desk whole that has changed since, in milliseconds."""
        return round(2000 * self.snapshot_seconds)


class PolicySettings(Group):
    """All that decides, beside the events. Journalled whole; the same for every worker."""

    table: ClassVar[str] = "policy"

    registration_lease_seconds: float = Field(
        30, ge=1, le=3600, description="Seconds that a registration holds without renewal (the hook renews every 10)."
    )
    call_lease_seconds: float = Field(
        180,
        ge=3,
        le=86400,
        description="Seconds that a call is believed alive without renewal (agents renew every 60).",
    )
    instruction_deadline_seconds: float = Field(
        10, ge=1, le=300,
        description="Seconds until an instruction without an outcome is issued again; longer than the dial's time-out.",
    )  # fmt: skip
    attempts: int = Field(
        5, ge=1, le=100,
        description="Failed dials of a stay to one registration after which the next live one has its turn; after the"
        " last one the caller is told.",
    )  # fmt: skip
    after_attempts: Literal["wait", "end"] = Field(
        "wait",
        description="What follows when a caller was told that the conference can't be reached: wait (and be put through"
        " once it can), or the end of the call.",
    )  # fmt: skip
    tell_deadline_seconds: float = Field(
        30, ge=1, le=300,
        description="Seconds until an instruction to tell a caller something is issued again if it has had no outcome;"
        " longer than the announcement.",
    )  # fmt: skip
    kick_seconds: float = Field(
        5, ge=0, le=60,
        description="Seconds after a node has hung up as usual: if the registration ends within them, the meeting is"
        " over and the caller follows it; if it is renewed after them, the caller was removed and isn't put back in.",
    )  # fmt: skip
    short_talk_seconds: float = Field(
        60, ge=0, le=3600,
        description="A talk that was lost before it was as long isn't put through again at once, but after a pause as"
        " after a failed dial; more than the time without audio after which a node counts as lost.",
    )  # fmt: skip
    backoff_seconds: float = Field(
        1, gt=0, le=60, description="Seconds before a failed dial is tried again; doubles with each failure."
    )
    backoff_max_seconds: float = Field(15, gt=0, le=600, description="Most seconds before a failed dial's next try.")
    ended_retention_seconds: float = Field(
        3600, ge=60, le=86400 * 30, description="Seconds that an ended registration or stay is remembered as ended."
    )
    stub_retention_seconds: float = Field(
        86400 * 7, ge=60, le=86400 * 365, description="Seconds that an ended desk's version and hash are kept."
    )
    fan_out: int = Field(200, ge=1, le=500, description="Most callers that one decision concerns; the rest follow.")
    allowed_nodes: str = Field(
        "", description="Hosts that callers may be sent to (names, addresses or networks, comma-separated); empty: any."
    )
    nodes: Path | None = Field(
        None,
        description="File of the nodes' public keys and hosts, a line each ('callyard keys' prints it). With it, only"
        " registrations that are signed by their own node count; without it, any does.",
    )
    signature_seconds: float = Field(
        120, ge=5, le=3600,
        description="Seconds by which a signed registration's own time may differ from the broker's; what is older is"
        " refused as expired. More than the nodes' clocks differ, and than Kafka's short outages take.",
    )  # fmt: skip

    @field_validator("allowed_nodes")
    @classmethod
    def _nodes(cls, value: str) -> str:
        AllowedNodes(value)
        return value


class AuditSettings(Group):
    """Keys of the journal's signed checkpoints (``callyard audit checkpoint`` and ``verify``)."""

    table: ClassVar[str] = "audit"

    signing_key: SecretStr | None = Field(
        None, description="Private Ed25519 key (PEM) that checkpoints are signed by; only where they are written."
    )
    verify_key: SecretStr | None = Field(
        None, description="Public Ed25519 key (PEM) that checkpoints are checked by; default: that of the private one."
    )
