"""What every worker has beside its task: a log, and a place that answers for its health."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from callyard.settings.groups import Group


class LogSettings(Group):
    """What the workers say, and how."""

    table: ClassVar[str] = "log"

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is written.")
    format: Literal["auto", "json", "text"] = Field(
        "auto", description="json: one object a line; text: for people; auto: text on a terminal, json elsewhere."
    )


class HealthSettings(Group):
    """Where a worker answers ``/healthz``, ``/readyz`` and ``/metrics`` (Prometheus), without TLS or passwords."""

    table: ClassVar[str] = "health"

    host: str = Field("127.0.0.1", description="Address that a worker's health and metrics are served on.")
    port: int = Field(
        0, ge=0, le=65533,
        description="TCP port that a worker's health and metrics are served on (0: not served); workers of one machine"
        " need different ones: by custom stream 9101, agent 9102, hook 9103. `callyard up` takes this one for the"
        " stream, the next for the agent, and the one after that for the hook.",
    )  # fmt: skip
    grace_seconds: float = Field(
        12, ge=1, le=300,
        description="Seconds from SIGTERM after which a worker ends even if it isn't done (Kafka may be away); less"
        " than its supervisor's own grace period. What it was about is gone on with by the next one.",
    )  # fmt: skip
