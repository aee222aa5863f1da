"""Kafka by Strimzi, and what Prometheus and KEDA are told: as the code has it, and valid by their own schemas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest

from callyard.rights import Right, rights
from callyard.settings import KafkaSettings, StreamSettings
from callyard.topics import stream_id, topics
from tests.support.kustomize import OVERLAYS, documents, of, one_of, pod_specs, rendered

CRDS = Path(__file__).parent / "fixtures" / "crds"
SETTINGS = KafkaSettings()
BROKERS = {"small": 1, "production": 3, "autoscaled": 3}


def schemas() -> dict[tuple[str, str], dict[str, Any]]:
    """By API version and kind: the schema, in which what isn't named isn't allowed, as the API server would have it."""
    found = {}
    for file in CRDS.iterdir():
        [crd] = documents(file)
        for version in crd["spec"]["versions"]:
            schema = version["schema"]["openAPIV3Schema"]
            schema.setdefault("properties", {}).update({"apiVersion": {}, "kind": {}, "metadata": {}})
            _close(schema)
            found[f"{crd['spec']['group']}/{version['name']}", crd["spec"]["names"]["kind"]] = schema
    return found


def _close(schema: dict[str, Any]) -> None:
    if schema.get("x-kubernetes-int-or-string"):
        schema.pop("type", None)
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    inner = [*schema.get("properties", {}).values(), schema.get("items"), schema.get("additionalProperties")]
    for one in inner:
        if isinstance(one, dict):
            _close(one)


SCHEMAS = schemas()


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_custom_resources_are_valid(overlay: str) -> None:
    checked = set()
    for one in rendered(overlay):
        api, kind = one["apiVersion"], one["kind"]
        if "." in api.partition("/")[0] and not api.partition("/")[0].endswith("k8s.io"):
            jsonschema.Draft202012Validator(SCHEMAS[api, kind]).validate(one)
            checked.add(kind)
    assert {"Kafka", "KafkaNodePool", "KafkaTopic", "KafkaUser"} <= checked


def test_what_a_schema_does_not_name_is_refused() -> None:
    [topic] = of(rendered("small"), "KafkaTopic", "callyard.calls")
    topic["spec"]["partitons"] = 12
    with pytest.raises(jsonschema.ValidationError, match="partitons"):
        jsonschema.Draft202012Validator(SCHEMAS[topic["apiVersion"], "KafkaTopic"]).validate(topic)


def test_topics_are_those_of_the_code(overlay: str) -> None:
    specs = {one["metadata"]["name"]: one["spec"] for one in of(rendered(overlay), "KafkaTopic")}
    found = {
        name: (spec["partitions"], {key: str(value) for key, value in spec["config"].items()})
        for name, spec in specs.items()
    }
    assert found == {topic.name: (topic.partitions, dict(topic.config)) for topic in topics(SETTINGS).all}


def right(acl: dict[str, Any]) -> Right:
    resource = acl["resource"]
    return Right(resource["type"], resource["name"], resource["patternType"], tuple(acl["operations"]))


def test_users_have_the_rights_of_their_roles_and_no_other(overlay: str) -> None:
    users = {}
    for one in of(rendered(overlay), "KafkaUser"):
        acls = one["spec"]["authorization"]["acls"]
        assert all(set(acl) == {"resource", "operations"} for acl in acls)
        users[one["metadata"]["name"].removeprefix("callyard-")] = tuple(map(right, acls))
    wanted = dict(rights(SETTINGS))
    node = wanted.pop("node")
    assert {name: users.pop(name) for name in wanted} == wanted
    assert users, "no node may register anything"
    assert all(name.startswith("node-") and found == node for name, found in users.items())


def test_topics_and_users_are_of_the_kafka_that_there_is(overlay: str) -> None:
    found = rendered(overlay)
    [kafka] = of(found, "Kafka")
    assert kafka["spec"]["kafka"]["authorization"] == {"type": "simple"}
    for one in [*of(found, "KafkaTopic"), *of(found, "KafkaUser"), *of(found, "KafkaNodePool")]:
        assert one["metadata"]["labels"]["strimzi.io/cluster"] == kafka["metadata"]["name"]
        assert one["metadata"]["namespace"] == kafka["metadata"]["namespace"]


def test_replicas_are_as_many_as_there_are_brokers_for(overlay: str) -> None:
    found = rendered(overlay)
    pools = [one["spec"] for one in of(found, "KafkaNodePool")]
    brokers = sum(pool["replicas"] for pool in pools if "broker" in pool["roles"])
    controllers = sum(pool["replicas"] for pool in pools if "controller" in pool["roles"])
    assert brokers == BROKERS[overlay]
    assert controllers % 2 == 1
    assert {one["spec"]["replicas"] for one in of(found, "KafkaTopic")} == {brokers}
    config = one_of(found, "Kafka", "callyard")["spec"]["kafka"]["config"]
    assert {value for name, value in config.items() if name.endswith("replication.factor")} == {brokers}
    assert config["min.insync.replicas"] == config["transaction.state.log.min.isr"] == max(1, brokers - 1)
    assert config["auto.create.topics.enable"] is False
    assert config["group.min.session.timeout.ms"] <= StreamSettings().session_seconds * 1000


def test_workers_find_kafka_where_it_listens(overlay: str) -> None:
    found = rendered(overlay)
    listeners = {one["name"]: one for one in one_of(found, "Kafka", "callyard")["spec"]["kafka"]["listeners"]}
    assert all(one["tls"] and one["authentication"] == {"type": "scram-sha-512"} for one in listeners.values())
    inside, outside = listeners["tls"], listeners["nodes"]
    assert (inside["type"], outside["type"] in {"loadbalancer", "nodeport"}) == ("internal", True)
    users = {one["metadata"]["name"] for one in of(found, "KafkaUser")}
    for config_map in ("stream-settings", "gateway-settings"):
        data = one_of(found, "ConfigMap", config_map)["data"]
        assert data["CALLYARD_KAFKA_BOOTSTRAP_SERVERS"] == f"callyard-kafka-bootstrap.callyard.svc:{inside['port']}"
        assert data["CALLYARD_KAFKA_SASL_USERNAME"] in users
        assert data["CALLYARD_KAFKA_SECURITY_PROTOCOL"] == "SASL_SSL"
    policy = one_of(found, "NetworkPolicy", "stream-to-kafka")["spec"]["egress"][0]
    assert policy["ports"] == [{"protocol": "TCP", "port": inside["port"]}]
    # Who may come in: the streams, and gateways by their hosts' addresses; never everybody.
    peers = inside["networkPolicyPeers"]
    assert {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "stream"}}} in peers
    assert "ipBlock" in peers[0]


def test_secrets_that_pods_mount_are_those_of_users(overlay: str) -> None:
    found = rendered(overlay)
    users = {one["metadata"]["name"] for one in of(found, "KafkaUser")}
    for name, spec in pod_specs(found):
        [kafka] = [volume["projected"]["sources"] for volume in spec["volumes"] if "projected" in volume]
        user = {"stream": "callyard-stream", "gateway": "callyard-gateway"}[name]
        assert [source["secret"]["name"] for source in kafka] == [user, "callyard-cluster-ca-cert"]
        assert user in users


def test_prometheus_asks_ports_that_there_are_and_may_reach_them() -> None:
    found = rendered("production")
    specs = dict(pod_specs(found))
    for monitor in of(found, "PodMonitor"):
        spec = specs[monitor["metadata"]["name"]]
        ports = {
            port["name"] for one in [*spec.get("initContainers", []), *spec["containers"]]
            for port in one.get("ports", []) if port["name"] in {"health", "standby"}
        }  # fmt: skip
        assert {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]} == ports
    health = one_of(found, "ConfigMap", "stream-settings")["data"]["CALLYARD_HEALTH_PORT"]
    [rule] = one_of(found, "NetworkPolicy", "prometheus-to-stream")["spec"]["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": int(health)}]


def test_keda_scales_by_the_streams_group_up_to_the_partitions() -> None:
    found = rendered("autoscaled")
    scaled = one_of(found, "ScaledObject", "stream")["spec"]
    deployment = one_of(found, "Deployment", "stream")
    assert "replicas" not in deployment["spec"], "each apply would take back what KEDA did"
    assert scaled["scaleTargetRef"] == {"name": "stream"}
    assert scaled["maxReplicaCount"] == SETTINGS.partitions
    assert scaled["minReplicaCount"] >= 2
    names = {topic.name for topic in topics(SETTINGS).inputs}
    inside = one_of(found, "ConfigMap", "stream-settings")["data"]["CALLYARD_KAFKA_BOOTSTRAP_SERVERS"]
    for trigger in scaled["triggers"]:
        metadata = trigger["metadata"]
        assert metadata["consumerGroup"] == stream_id(SETTINGS)
        assert metadata["topic"] in names
        assert metadata["bootstrapServers"] == inside
        assert one_of(found, "KafkaUser", metadata["username"])
        authentication = one_of(found, "TriggerAuthentication", trigger["authenticationRef"]["name"])
        assert authentication["spec"]["secretTargetRef"][0]["name"] == metadata["username"]
    peers = one_of(found, "Kafka", "callyard")["spec"]["kafka"]["listeners"][0]["networkPolicyPeers"]
    assert "namespaceSelector" in peers[-1]
