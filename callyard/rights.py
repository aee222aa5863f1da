"""What each role may do on the bus: the least that its worker needs, in one place.

``callyard rights`` prints it, workers ask the brokers for it before they start (`callyard.access`), and the
``KafkaUser`` resources under ``deploy/`` are held to it by a test. Nodes are the most exposed machines: what they hold
must write registrations (and what they could not read) and nothing else. Nothing here may be more than is needed.

Every worker may look at all topics, because it checks them before it starts; that shows no record. Idempotent producers
need no right of their own: whoever may write to a topic may have a producer id (KIP-679).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from callyard.settings import KafkaSettings
from callyard.topics import Topic, stream_id, topics

Resource = Literal["topic", "group"]
Pattern = Literal["literal", "prefix"]
Operation = Literal["Read", "Write", "Describe", "DescribeConfigs"]
Role = Literal["node", "gateway", "stream", "auditor", "scaler"]
ROLES: Mapping[Role, str] = {
    "node": "a node's hook: writes registrations",
    "gateway": "a gateway's agent: writes calls, reads dials",
    "stream": "a stream worker: reads the inputs, keeps the table, writes dials and the journal",
    "auditor": "audit, table, export, replay: reads everything, writes nothing",
    "scaler": "KEDA: sees how far the stream has read; no record",
}


@dataclass(frozen=True)
class Right:
    """One resource, or all whose names begin so, and what may be done there."""

    resource: Resource
    name: str
    pattern: Pattern
    operations: tuple[Operation, ...]


def agent_group(settings: KafkaSettings, gateway: str) -> str:
    """The consumer group of a gateway's agents."""
    return f"{settings.topic_prefix}-agent-{gateway}"


def rights(settings: KafkaSettings, gateway: str | None = None) -> Mapping[str, tuple[Right, ...]]:
    """The rights by role.

    ``gateway``: the id of the only one that role gateway speaks for. Without it that role may take any gateway's place.
    """
    names = topics(settings)
    look = _may(names.all, "Describe", "DescribeConfigs")
    group = agent_group(settings, gateway or "")
    return {
        "node": (*look, *_may([names.registrations, names.rejected], "Write")),
        "gateway": (
            *look,
            *_may([names.calls, names.rejected], "Write"),
            *_may([names.dials], "Read"),
            Right("group", group, "literal" if gateway else "prefix", ("Read",)),
        ),
        "stream": (
            *look,
            *_may([names.registrations, names.calls], "Read"),
            Right("group", stream_id(settings), "literal", ("Read",)),
            *_may([names.timers, names.changelog], "Read", "Write"),
            *_may([names.dials, names.journal, names.rejected], "Write"),
        ),
        "auditor": (
            *_may(names.all, "Read", "Describe", "DescribeConfigs"),
            # Who decides and who speaks, and how far they are ('callyard status').
            Right("group", stream_id(settings), "literal", ("Describe",)),
            Right("group", agent_group(settings, ""), "prefix", ("Describe",)),
        ),
        "scaler": (*_may(names.inputs, "Describe"), Right("group", stream_id(settings), "literal", ("Describe",))),
    }


def _may(names: Iterable[Topic], *operations: Operation) -> tuple[Right, ...]:
    return tuple(Right("topic", topic.name, "literal", operations) for topic in names)


def commands(settings: KafkaSettings, role: str, principal: str, gateway: str | None = None) -> list[str]:
    """The ``kafka-acls`` commands that give a principal (``User:callyard-node``) a role's rights.

    They are lines of a shell in which ``$BROKER`` is set, in a folder with the administrator's ``admin.properties``.
    """
    grouped: dict[tuple[Pattern, tuple[Operation, ...]], list[Right]] = {}
    for right in rights(settings, gateway)[role]:
        grouped.setdefault((right.pattern, right.operations), []).append(right)
    return [
        " ".join(
            [
                "kafka-acls --bootstrap-server $BROKER --command-config admin.properties --add",
                f"--allow-principal '{principal}'",
                *(f"--operation {operation}" for operation in operations),
                *(f"--{right.resource} {right.name}" for right in same),
                *(["--resource-pattern-type prefixed"] if pattern == "prefix" else []),
            ]
        )
        for (pattern, operations), same in grouped.items()
    ]


def strimzi(name: str, cluster: str, granted: Sequence[Right], authentication: str) -> str:
    """A ``KafkaUser`` (YAML) with these rights, for Strimzi's user operator."""
    acls = "\n".join(
        f"    - resource: {{type: {right.resource}, name: {right.name}, patternType: {right.pattern}}}\n"
        f"      operations: [{', '.join(right.operations)}]"
        for right in granted
    )
    return f"""\
apiVersion: kafka.strimzi.io/v1
kind: KafkaUser
metadata:
  name: {name}
  labels:
    strimzi.io/cluster: {cluster}
spec:
  authentication:
    type: {authentication}
  authorization:
    type: simple
    acls:
{acls}
"""
