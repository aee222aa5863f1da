"""The policy: every setting that decides. Frozen, journalled whole, and named by its digest in each journal entry.

Two workers with different policies would decide differently, so a decision can be replayed only with the policy it was
made under. All times are milliseconds of the broker's clock.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from callyard.records import digest
from callyard.settings import PolicySettings, SettingsError
from callyard.signing import SigningError, read_nodes


@dataclasses.dataclass(frozen=True, slots=True)
class Policy:
    """What `streams.decide.decide` goes by, beside desk, event and time."""

    registration_lease_ms: int
    call_lease_ms: int
    instruction_deadline_ms: int
    attempts: int
    backoff_ms: int
    backoff_max_ms: int
    after_attempts: str
    """``wait`` or ``end``: what a caller does who was told that the conference can't be reached."""
    tell_deadline_ms: int
    kick_ms: int
    short_talk_ms: int
    ended_retention_ms: int
    stub_retention_ms: int
    fan_out: int
    allowed_nodes: tuple[str, ...]
    nodes: tuple[str, ...] = ()
    """Lines of `callyard.signing.NodeKey`: who may register what. Empty: anybody, unsigned."""
    signature_ms: int = 120_000

    @classmethod
    def of(cls, settings: PolicySettings) -> Policy:
        """The policy that these settings ask for. Raises `SettingsError` where the file of nodes can't be used."""

        def ms(seconds: float) -> int:
            return round(seconds * 1000)

        return cls(
            registration_lease_ms=ms(settings.registration_lease_seconds),
            call_lease_ms=ms(settings.call_lease_seconds),
            instruction_deadline_ms=ms(settings.instruction_deadline_seconds),
            attempts=settings.attempts,
            backoff_ms=ms(settings.backoff_seconds),
            backoff_max_ms=ms(settings.backoff_max_seconds),
            after_attempts=settings.after_attempts,
            tell_deadline_ms=ms(settings.tell_deadline_seconds),
            kick_ms=ms(settings.kick_seconds),
            short_talk_ms=ms(settings.short_talk_seconds),
            ended_retention_ms=ms(settings.ended_retention_seconds),
            stub_retention_ms=ms(settings.stub_retention_seconds),
            fan_out=settings.fan_out,
            allowed_nodes=tuple(sorted(host.strip() for host in settings.allowed_nodes.split(",") if host.strip())),
            nodes=() if settings.nodes is None else _nodes(settings.nodes),
            signature_ms=ms(settings.signature_seconds),
        )

    @classmethod
    def of_dict(cls, content: Mapping[str, Any]) -> Policy:
        """A policy as it was journalled; what its version didn't know yet is as settings have it by default.

        Raises `TypeError` for what is no policy.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        default = cls.of(PolicySettings()).as_dict()
        fields = {**default, **{k: tuple(v) if type(v) is list else v for k, v in content.items() if k in known}}
        for name, value in fields.items():
            texts = not isinstance(value, tuple) or all(isinstance(one, str) for one in value)
            if type(value) is not type(default[name]) or not texts:
                raise TypeError(f"a policy's {name} can't be {value!r:.60}")
        return cls(**fields)

    def as_dict(self) -> dict[str, Any]:
        """The policy as it is journalled."""
        return dataclasses.asdict(self)

    @property
    def digest(self) -> str:
        """Names this policy: the first 16 hexadecimal digits of the SHA-256 of its canonical JSON."""
        return digest(orjson.dumps(self.as_dict(), option=orjson.OPT_SORT_KEYS))[:16]

    def backoff_after(self, failures: int) -> int:
        """Milliseconds to wait after this many failed dials in a row to the same registration."""
        if failures >= self.attempts:
            return self.backoff_max_ms
        return min(self.backoff_max_ms, int(self.backoff_ms * 2 ** min(60, max(0, failures - 1))))


def _nodes(path: Path) -> tuple[str, ...]:
    variable = PolicySettings.variable("nodes")
    try:
        found = read_nodes(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError([f"{variable}: cannot read {path}: {error}"]) from None
    except SigningError as error:
        raise SettingsError([f"{variable}: {path}, {error}"]) from None
    if not found:
        raise SettingsError([f"{variable}: {path} names no node: nobody could register anything"])
    return tuple(node.line for node in found)
