"""What the brokers say that this client may do: asked of them, without trying it.

aiokafka has no request that tells it (Metadata from version 8 on), or reads the answer wrong (DescribeGroups of version
3), so both are here. Brokers without an authorizer allow everything; some that aren't Apache Kafka say nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping

from aiokafka.client import AIOKafkaClient, CoordinationType
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    IncompatibleBrokerVersion,
    KafkaError,
    NoError,
    TopicAuthorizationFailedError,
    for_code,
)
from aiokafka.protocol.admin import DescribeGroupsResponse_v3
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Boolean, Int16, Int32, Schema, String

OPERATIONS: Mapping[str, int] = {
    "Read": 3, "Write": 4, "Create": 5, "Delete": 6, "Alter": 7, "Describe": 8, "DescribeConfigs": 10,
    "AlterConfigs": 11,
}  # fmt: skip
"""Kafka's operations on topics and groups, by the bits in which they are told."""
_NOT_TOLD = -(2**31)
_PAUSE_SECONDS = 0.05


class _MetadataResponseV8(Response):  # type: ignore[misc]  # aiokafka has no complete types
    API_KEY = 3
    API_VERSION = 8
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("brokers", Array(("node_id", Int32), ("host", String("utf-8")), ("port", Int32), ("rack", String("utf-8")))),
        ("cluster_id", String("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            Array(
                ("error_code", Int16),
                ("topic", String("utf-8")),
                ("is_internal", Boolean),
                (
                    "partitions",
                    Array(
                        ("error_code", Int16), ("partition", Int32), ("leader", Int32), ("leader_epoch", Int32),
                        ("replicas", Array(Int32)), ("isr", Array(Int32)), ("offline_replicas", Array(Int32)),
                    ),
                ),
                ("authorized_operations", Int32),
            ),
        ),
        ("cluster_authorized_operations", Int32),
    )  # fmt: skip


class _MetadataRequestV8(RequestStruct):  # type: ignore[misc]  # aiokafka has no complete types
    API_KEY = 3
    API_VERSION = 8
    RESPONSE_TYPE = _MetadataResponseV8
    SCHEMA = Schema(
        ("topics", Array(String("utf-8"))),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
    )


class _TopicsRequest(Request[_MetadataRequestV8]):  # type: ignore[misc]  # as above
    API_KEY = 3

    def __init__(self, names: list[str]) -> None:
        self._names = names

    def build(self, request_struct_class: type[_MetadataRequestV8]) -> _MetadataRequestV8:
        return request_struct_class(self._names, False, False, True)


class _DescribeGroupsRequestV3(RequestStruct):  # type: ignore[misc]  # aiokafka has no complete types
    # aiokafka's own reads the answer as one of version 2, which has no rights in it.
    API_KEY = 15
    API_VERSION = 3
    RESPONSE_TYPE = DescribeGroupsResponse_v3
    SCHEMA = Schema(("groups", Array(String("utf-8"))), ("include_authorized_operations", Boolean))


class _GroupRequest(Request[_DescribeGroupsRequestV3]):  # type: ignore[misc]  # as above
    API_KEY = 15

    def __init__(self, group: str) -> None:
        self._group = group

    def build(self, request_struct_class: type[_DescribeGroupsRequestV3]) -> _DescribeGroupsRequestV3:
        return request_struct_class([self._group], True)


async def on_topics(client: AIOKafkaClient, names: Iterable[str]) -> dict[str, frozenset[str]]:
    """The operations that are allowed on those of these topics that exist, or that can't be seen.

    Raises aiokafka's `KafkaError`. Empty where the brokers don't tell.
    """
    try:
        answer = await client.send(client.get_random_node(), _TopicsRequest(list(names)))
    except (NotImplementedError, IncompatibleBrokerVersion):
        return {}
    found = {}
    for code, name, _, _, bits in answer.topics:
        error = for_code(code)
        if error is TopicAuthorizationFailedError:
            found[name] = frozenset[str]()
        elif error is NoError and bits != _NOT_TOLD:
            found[name] = _operations(bits)
    return found


async def on_group(client: AIOKafkaClient, group: str, timeout: float) -> frozenset[str] | None:
    """The operations that are allowed on a group; None where the brokers don't tell, or not within ``timeout`` seconds.

    Raises aiokafka's `KafkaError` for what no waiting mends.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            coordinator = await client.coordinator_lookup(CoordinationType.GROUP, group)
            answer = await client.send(coordinator, _GroupRequest(group))
            [(code, *_, bits)] = answer.groups
            if (error := for_code(code)) is not NoError:
                raise error(group)
        except (NotImplementedError, IncompatibleBrokerVersion):
            return None
        except GroupAuthorizationFailedError:
            return frozenset()
        except KafkaError as error:
            # A cluster that has just begun has no coordinators for a while: no reason to refuse to start.
            if not error.retriable:
                raise
            if time.monotonic() > deadline:
                return None
            await asyncio.sleep(_PAUSE_SECONDS)
        else:
            return None if bits == _NOT_TOLD else _operations(bits)


def _operations(bits: int) -> frozenset[str]:
    return frozenset(name for name, bit in OPERATIONS.items() if bits & 1 << bit)
