"""What each role may do on the bus: the least that its worker needs, in one place.

The Strimzi ``KafkaUser`` resources under ``deploy/`` and docs/kubernetes.md (commands of ``kafka-acls``) say the same;
tests hold them to it. Nodes are the most exposed machines: what they hold must write registrations and nothing else.

Every role may describe all topics, because each worker checks them before it starts; that shows no record. Idempotent
producers need no right of their own: whoever may write to a topic may have a producer id (KIP-679).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from callyard.settings import KafkaSettings
from callyard.topics import Topic, stream_id, topics

Resource = Literal["topic", "group"]
Pattern = Literal["literal", "prefix"]
Operation = Literal["Read", "Write", "Describe", "DescribeConfigs"]


@dataclass(frozen=True)
class Right:
    """One resource, or all whose names begin so, and what may be done there."""

    resource: Resource
    name: str
    pattern: Pattern
    operations: tuple[Operation, ...]


def rights(settings: KafkaSettings) -> Mapping[str, tuple[Right, ...]]:
    """The rights by role: ``node``, ``gateway``, ``stream``, ``auditor``, ``scaler`` (which reads no record)."""
    all_topics, prefix = topics(settings), settings.topic_prefix
    look = Right("topic", prefix, "prefix", ("Describe", "DescribeConfigs"))
    rejects = _may(all_topics.rejected, "Write")
    return {
        "node": (look, _may(all_topics.registrations, "Write"), rejects),
        "gateway": (
            look,
            _may(all_topics.calls, "Write"),
            rejects,
            _may(all_topics.dials, "Read"),
            Right("group", f"{prefix}-agent-", "prefix", ("Read",)),
        ),
        "stream": (
            look,
            _may(all_topics.registrations, "Read"),
            _may(all_topics.calls, "Read"),
            _may(all_topics.timers, "Read", "Write"),
            _may(all_topics.changelog, "Read", "Write"),
            _may(all_topics.dials, "Write"),
            _may(all_topics.journal, "Write"),
            rejects,
            Right("group", stream_id(settings), "literal", ("Read",)),
        ),
        "auditor": (
            Right("topic", prefix, "prefix", ("Read", "Describe", "DescribeConfigs")),
            Right("group", f"{prefix}-audit-", "prefix", ("Read",)),
            # Who decides and who speaks, and how far they are ('callyard status').
            Right("group", stream_id(settings), "literal", ("Describe",)),
            Right("group", f"{prefix}-agent-", "prefix", ("Describe",)),
        ),
        "scaler": (look, Right("group", stream_id(settings), "literal", ("Describe",))),
    }


def _may(topic: Topic, *operations: Operation) -> Right:
    return Right("topic", topic.name, "literal", operations)


def commands(settings: KafkaSettings, role: str, principal: str) -> list[str]:
    """The ``kafka-acls`` commands that give a principal (``User:callyard-node``) a role's rights."""
    lines = []
    for right in rights(settings)[role]:
        operations = " ".join(f"--operation {operation}" for operation in right.operations)
        pattern = " --resource-pattern-type prefixed" if right.pattern == "prefix" else ""
        lines.append(
            "kafka-acls --bootstrap-server $BROKER --command-config admin.properties --add"
            f" --allow-principal {principal} {operations} --{right.resource} {right.name}{pattern}"
        )
    return lines
