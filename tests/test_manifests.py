"""The manifests as each overlay has them: hardened, with settings that exist, files that are there, and time to end."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from agents import worker as agent
from ast_config import command as asterisk
from callyard.settings import (
    AmiSettings,
    AsteriskSettings,
    HealthSettings,
    KafkaSettings,
    Loaded,
    LogSettings,
    PolicySettings,
    StreamSettings,
    load,
    variables,
)
from streams.policy import Policy
from tests.support.kustomize import KUBERNETES, OVERLAYS, containers, documents, of, one_of, pod_specs, rendered

DEPLOY = KUBERNETES.parent
GROUPS = {
    "stream": (KafkaSettings, StreamSettings, PolicySettings, LogSettings, HealthSettings),
    "agent": (*agent.GROUPS, LogSettings, HealthSettings),
    "render": asterisk.GROUPS,
}
"""By the first argument of the image's command: what it reads."""
POD = {"metadata.name": "gateway-0", "status.podIP": "192.0.2.10", "status.hostIP": "192.0.2.10"}


@pytest.fixture(params=OVERLAYS)
def found(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return rendered(request.param)


def environment(found: list[dict[str, Any]], container: dict[str, Any]) -> dict[str, str]:
    """What the container's environment would be."""
    values: dict[str, str] = {}
    for source in container.get("envFrom", []):
        [kind] = source
        assert kind == "configMapRef", "secrets are files"
        values.update(one_of(found, "ConfigMap", source[kind]["name"])["data"])
    for variable in container.get("env", []):
        if "value" in variable:
            values[variable["name"]] = variable["value"]
        else:
            values[variable["name"]] = POD[variable["valueFrom"]["fieldRef"]["fieldPath"]]
    return values


def mounted(found: list[dict[str, Any]], spec: dict[str, Any], container: dict[str, Any]) -> dict[str, str]:
    """The files that the container finds in its volumes: path and content (of a Secret nothing is known)."""
    files = {}
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    for mount in container["volumeMounts"]:
        volume = volumes[mount["name"]]
        for source in volume.get("projected", {}).get("sources", []):
            for item in source["secret"]["items"]:
                files[f"{mount['mountPath']}/{item['path']}"] = "secret"
        if "configMap" in volume:
            for name, content in one_of(found, "ConfigMap", volume["configMap"]["name"])["data"].items():
                files[f"{mount['mountPath']}/{name}"] = content
        if "secret" in volume:  # made by hand, with one key (docs/kubernetes.md)
            files[f"{mount['mountPath']}/secret"] = "secret"
    return files


def loaded(found: list[dict[str, Any]], spec: dict[str, Any], container: dict[str, Any], directory: Path) -> Loaded:
    """The settings that a container's program would read, its files being where it looks for them."""
    values = environment(found, container)
    for path, content in mounted(found, spec, container).items():
        file = directory / container["name"] / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
        values = {name: str(file) if value == path else value for name, value in values.items()}
    return load(*GROUPS[container["args"][0]], environment=values)


def callyard_containers(found: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return [(spec, one) for _, spec in pod_specs(found) for one in containers(spec) if "args" in one]


def test_settings_load_and_their_files_are_mounted(found: list[dict[str, Any]], tmp_path: Path) -> None:
    programs = set()
    for spec, container in callyard_containers(found):
        settings = loaded(found, spec, container, tmp_path)
        programs.add(container["args"][0])
        if container["args"][0] == "stream":
            assert Policy.of(settings[PolicySettings]).nodes, "without the nodes' keys anybody could register"
    assert programs == set(GROUPS)


def test_every_file_that_a_setting_names_is_mounted(found: list[dict[str, Any]]) -> None:
    for spec, container in callyard_containers(found):
        paths = {value for name, value in environment(found, container).items() if value.startswith("/etc/callyard/")}
        if container["args"][0] == "render":  # it speaks to nobody
            paths = {path for path in paths if not path.startswith("/etc/callyard/kafka/")}
        assert paths, container["name"]
        assert paths <= set(mounted(found, spec, container)), container["name"]


def test_every_variable_anywhere_under_deploy_is_a_setting() -> None:
    # Asterisk's own, its scripts', and where the embedded Kafka's program lies.
    known = {*variables(), "CALLYARD_DRAINING", "CALLYARD_ASTERISK_CONF", "CALLYARD_CACHE"}
    files = [path for path in DEPLOY.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    named = {
        (path.name, name)
        for path in files
        for name in re.findall(r"CALLYARD_[A-Z][A-Z_]*[A-Z]", path.read_text(encoding="utf-8"))
    }
    assert len(named) > 40
    assert {(file, name) for file, name in named if name not in known} == set()


def test_images_are_the_overlays(found: list[dict[str, Any]]) -> None:
    images = {container["image"] for _, spec in pod_specs(found) for container in containers(spec)}
    assert len(images) == 2
    assert not any(image.endswith(":latest") for image in images)
    for image in images:
        assert re.fullmatch(r"registry\.example\.org/callyard(-asterisk)?:\S+", image)


def test_pods_and_containers_are_hardened(found: list[dict[str, Any]]) -> None:
    for name, spec in pod_specs(found):
        assert spec["securityContext"] == {
            "runAsNonRoot": True, "runAsUser": 10001, "runAsGroup": 10001, "fsGroup": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        }  # fmt: skip
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        account = one_of(found, "ServiceAccount", spec["serviceAccountName"])
        assert account["automountServiceAccountToken"] is False
        assert not {"hostPID", "hostIPC", "shareProcessNamespace"} & set(spec), name
        assert not any("hostPath" in volume for volume in spec["volumes"])
        for container in containers(spec):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
            }, container["name"]  # fmt: skip
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])
            # A CPU limit would hold heartbeats up; memory without one would be somebody else's.
            assert set(container["resources"]["limits"]) == {"memory"}


def test_only_gateways_have_the_hosts_network_and_their_namespace_alone_allows_it(found: list[dict[str, Any]]) -> None:
    level = "pod-security.kubernetes.io/enforce"
    levels = {one["metadata"]["name"]: one["metadata"]["labels"][level] for one in of(found, "Namespace")}
    assert levels == {"callyard": "restricted", "callyard-gateways": "privileged"}
    for one in found:
        if one["kind"] in {"Deployment", "StatefulSet"}:
            on_host = one["spec"]["template"]["spec"].get("hostNetwork", False)
            assert on_host == (one["metadata"]["namespace"] == "callyard-gateways"), one["metadata"]["name"]


def test_secrets_stand_nowhere(found: list[dict[str, Any]]) -> None:
    assert of(found, "Secret") == []
    secret = {name.removesuffix("_FILE") for name in variables() if name.endswith("_FILE")}
    assert len(secret) > 5
    for config_map in of(found, "ConfigMap"):
        assert not secret & set(config_map["data"])
    for _, spec in pod_specs(found):
        for container in containers(spec):
            assert not secret & {variable["name"] for variable in container.get("env", [])}


def test_probes_ask_where_health_is_served(found: list[dict[str, Any]]) -> None:
    for _, container in callyard_containers(found):
        if container["args"][0] == "render":
            continue
        values = environment(found, container)
        [port] = container["ports"]
        assert str(port["containerPort"]) == values["CALLYARD_HEALTH_PORT"]
        paths = {"livenessProbe": "/healthz", "readinessProbe": "/readyz"}
        # An agent that has to start before Asterisk may would keep it from starting while Kafka is away.
        paths |= {} if container["args"] == ["agent"] else {"startupProbe": "/healthz"}
        assert {name for name in container if name.endswith("Probe")} == set(paths)
        for probe, path in paths.items():
            assert container[probe]["httpGet"] == {"path": path, "port": port["name"]}, (container["name"], probe)
        assert values["CALLYARD_HEALTH_HOST"] in {"0.0.0.0", POD["status.podIP"]}


def test_health_of_what_is_on_the_hosts_network_is_on_one_address(found: list[dict[str, Any]]) -> None:
    [gateway] = of(found, "StatefulSet")
    ports = []
    for container in containers(gateway["spec"]["template"]["spec"]):
        ports += [(port["hostPort"], port.get("protocol", "TCP")) for port in container.get("ports", [])]
        if container.get("args") == ["agent"]:
            assert environment(found, container)["CALLYARD_HEALTH_HOST"] == POD["status.podIP"]
    assert len(ports) == len(set(ports)), "two containers of a pod listen on the same port of the host"


def test_workers_end_by_themselves_before_they_are_killed(found: list[dict[str, Any]], tmp_path: Path) -> None:
    deployment = one_of(found, "Deployment", "stream")["spec"]["template"]["spec"]
    grace = loaded(found, deployment, deployment["containers"][0], tmp_path)[HealthSettings].grace_seconds
    assert deployment["terminationGracePeriodSeconds"] >= grace + 5


def test_a_gateway_may_drain_until_the_longest_call_is_over(found: list[dict[str, Any]], tmp_path: Path) -> None:
    spec = one_of(found, "StatefulSet", "gateway")["spec"]["template"]["spec"]
    [render, agent_container] = [one for one in spec["initContainers"] if one["name"] in {"render", "agent"}]
    call = loaded(found, spec, render, tmp_path)[AsteriskSettings].longest_call_seconds
    grace = loaded(found, spec, agent_container, tmp_path)[HealthSettings].grace_seconds
    assert call > 0, "a call without an end is one for which a gateway would never be drained"
    assert spec["terminationGracePeriodSeconds"] >= call + grace + 60
    [on_asterisk] = spec["containers"]
    assert on_asterisk["lifecycle"]["preStop"]["exec"]["command"] == ["asterisk-drain"]
    # Sidecars begin before Asterisk and end after it; what is no sidecar would be told to end as the drain begins.
    sidecars = [one for one in spec["initContainers"] if one.get("args") == ["agent"]]
    assert sidecars
    assert all(one["restartPolicy"] == "Always" for one in sidecars)
    assert spec["initContainers"][0]["name"] == "render"


def test_each_gateway_has_a_host_and_an_id_of_its_own(found: list[dict[str, Any]]) -> None:
    gateway = one_of(found, "StatefulSet", "gateway")["spec"]
    [apart] = gateway["template"]["spec"]["affinity"]["podAntiAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]
    assert apart == {"topologyKey": "kubernetes.io/hostname", "labelSelector": gateway["selector"]}
    for container in gateway["template"]["spec"]["initContainers"]:
        assert environment(found, container)["CALLYARD_GATEWAY_ID"] == "gateway-0"


def test_the_standby_agent_is_the_agent_but_for_its_port() -> None:
    spec = one_of(rendered("production"), "StatefulSet", "gateway")["spec"]["template"]["spec"]
    [first, second] = [one for one in spec["initContainers"] if one["args"] == ["agent"]]
    assert (first.pop("name"), second.pop("name")) == ("agent", "agent-standby")
    [port], [other] = first.pop("ports"), second.pop("ports")
    assert (port["name"], other["name"]) == ("health", "standby")
    for probe in ("livenessProbe", "readinessProbe"):
        assert (first[probe]["httpGet"].pop("port"), second[probe]["httpGet"].pop("port")) == ("health", "standby")
    # Where audio goes is Asterisk's, not the agents'.
    first["env"] = [one for one in first["env"] if one["name"] != "CALLYARD_ASTERISK_MEDIA_ADDRESS"]
    second["env"] = [one for one in second["env"] if one["name"] != "CALLYARD_HEALTH_PORT"]
    assert first == second


def test_every_namespace_denies_by_default_in_both_directions(found: list[dict[str, Any]]) -> None:
    for namespace in of(found, "Namespace"):
        name = namespace["metadata"]["name"]
        policies = [one for one in of(found, "NetworkPolicy") if one["metadata"]["namespace"] == name]
        assert {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} in [policy["spec"] for policy in policies]
        for policy in policies:  # what is empty would allow everything
            assert all("to" in rule or "ports" in rule for rule in policy["spec"].get("egress", []))
            assert all(rule.get("from") for rule in policy["spec"].get("ingress", []))


def test_disruption_budgets_let_one_pod_go_at_a_time(found: list[dict[str, Any]]) -> None:
    budgets = {one["metadata"]["name"]: one["spec"] for one in of(found, "PodDisruptionBudget")}
    workloads = {one["metadata"]["name"]: one for one in found if one["kind"] in {"Deployment", "StatefulSet"}}
    assert set(budgets) == set(workloads)
    for name, budget in budgets.items():
        assert budget["maxUnavailable"] == 1
        assert budget["selector"] == workloads[name]["spec"]["selector"]


def test_selectors_find_the_pods_that_they_are_meant_for(found: list[dict[str, Any]]) -> None:
    labels = [one["spec"]["template"]["metadata"]["labels"] for one in found if "template" in one.get("spec", {})
              and one["kind"] in {"Deployment", "StatefulSet"}]  # fmt: skip
    selectors = [one["spec"]["podSelector"].get("matchLabels") for one in of(found, "NetworkPolicy")]
    selectors += [one["spec"]["selector"]["matchLabels"] for one in of(found, "PodMonitor")]
    selectors += [one["spec"]["selector"] for one in of(found, "Service")]
    for selector in selectors:
        if selector and not any(name.startswith("strimzi.io/") for name in selector):
            assert any(selector.items() <= pod.items() for pod in labels), selector


def test_nothing_under_kubernetes_is_left_out() -> None:
    names = {path.name for path in KUBERNETES.rglob("*") if path.is_file()}
    kinds = {".yaml", ".env", ""}
    assert {Path(name).suffix for name in names} <= kinds
    for file in KUBERNETES.rglob("*.yaml"):
        if file.name != "kustomization.yaml":
            settings = documents(file.parent / "kustomization.yaml")[0]
            listed = {*settings.get("resources", []), *(patch.get("path") for patch in settings.get("patches", []))}
            assert file.name in listed, file


def test_the_guide_speaks_of_what_there_is() -> None:
    text = (DEPLOY.parent / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    named = set(re.findall(r"CALLYARD_[A-Z][A-Z_]*[A-Z]", text))
    assert len(named) > 10
    assert named <= set(variables())
    for path in re.findall(r"`((?:base|gateway|strimzi|components|overlays)/[\w./-]*)`", text):
        assert (KUBERNETES / path).exists(), path
    for path in re.findall(r"deploy/[\w./-]*\w", text):
        assert path.startswith("deploy/kubernetes/overlays/mine") or (DEPLOY.parent / path).exists(), path
    for path in re.findall(r"\]\(([\w./-]+\.md)\)", text):
        assert (DEPLOY.parent / "docs" / path).exists(), path
    # What the guide says of draining is what the manifests do.
    spec = one_of(rendered("small"), "StatefulSet", "gateway")["spec"]["template"]["spec"]
    longest = one_of(rendered("small"), "ConfigMap", "gateway-settings")["data"][
        "CALLYARD_ASTERISK_LONGEST_CALL_SECONDS"
    ]
    assert f"({spec['terminationGracePeriodSeconds']:,})" in text
    assert f"({int(longest):,}: four hours)" in text


def test_the_guides_packet_filter_has_the_gateways_ports(found: list[dict[str, Any]], tmp_path: Path) -> None:
    text = (DEPLOY.parent / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    dropped = " ".join(re.findall(r"dport \{([^}]*)\} drop", text))
    spec = one_of(found, "StatefulSet", "gateway")["spec"]["template"]["spec"]
    for container in containers(spec):
        assert all(str(port["hostPort"]) in dropped for port in container.get("ports", []))
    settings = loaded(found, spec, spec["initContainers"][0], tmp_path)
    assert f"{settings[AsteriskSettings].rtp_first_port}-{settings[AsteriskSettings].rtp_last_port}" in dropped
    assert str(settings[AmiSettings].port) in dropped
