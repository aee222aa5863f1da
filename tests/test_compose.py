"""The compose file: compose's own schema takes it, its containers are confined, and its settings are right."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from ruamel.yaml import YAML

from agents import worker as agent_worker
from ast_config import command as ast_command
from callyard import clients
from callyard.kafka import embedded
from callyard.processes import free_port
from callyard.settings import (
    EslSettings,
    HealthSettings,
    KafkaSettings,
    LogSettings,
    NodeSettings,
    PolicySettings,
    StreamSettings,
    load,
    variables,
)
from callyard.topics_command import ensure
from tests.support.units import environment_file

FOLDER = Path(__file__).parent.parent / "deploy" / "compose"
TEXT = (FOLDER / "compose.yaml").read_text()
COMPOSE: dict[str, Any] = YAML(typ="safe", pure=True).load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = sorted(name for name, service in SERVICES.items() if service["image"].startswith("callyard:"))
COMMON = (KafkaSettings, LogSettings, HealthSettings)
GROUPS = {
    "topics": (KafkaSettings,),
    "stream": (*COMMON, StreamSettings, PolicySettings),
    "agent": (*COMMON, *agent_worker.GROUPS),
    "hook": (*COMMON, NodeSettings, EslSettings),
    "render": ast_command.GROUPS,
}


def checked(path: Path) -> subprocess.CompletedProcess[str]:
    """The specification's own schema, as check-jsonschema brings it along."""
    words = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_the_specification_takes_it(tmp_path: Path) -> None:
    found = checked(FOLDER / "compose.yaml")
    assert found.returncode == 0, found.stdout
    (tmp_path / "compose.yaml").write_text(TEXT.replace("read_only: true", "readonly: true"))
    assert "readonly" in checked(tmp_path / "compose.yaml").stdout


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_each_container_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    assert not {"privileged", "cap_add", "pid", "ipc", "userns_mode"} & set(service)
    assert re.fullmatch(r"[a-z./-]+:[0-9.]+", service["image"]), "by a tag that says which"
    if name != "kafka":  # whose image has a user of its own, and writes its configuration at each start
        assert service["user"] == "10001:10001"
        assert service["read_only"]


@pytest.mark.parametrize("everything", [False, True], ids=["as it stands", "with all that is commented out"])
@pytest.mark.parametrize("name", OURS)
def test_each_containers_settings_are_right(name: str, everything: bool, tmp_path: Path) -> None:
    service, example = SERVICES[name], (FOLDER / "callyard.env.example").read_text()
    assert service["env_file"] == ["callyard.env"]
    shown = {**environment_file(example), **(environment_file(example, comments=True) if everything else {})}
    shown = {**shown, **service.get("environment", {})}
    assert set(shown) <= set(variables())
    secrets = {value for variable, value in shown.items() if variable.endswith("_FILE")}
    assert secrets == {f"/run/secrets/{secret}" for secret in service.get("secrets", [])}
    for variable, value in shown.items():
        shown[variable] = re.sub(r"\$\{SITE_ADDRESS:-([^}]*)\}", r"\1", value)
        if value in secrets:
            (tmp_path / Path(value).name).write_text("secret\n")
            shown[variable] = str(tmp_path / Path(value).name)
    command = service["command"][0]
    if command == "hook":
        shown.setdefault("CALLYARD_NODE_SIP_URI", "sip:{conference}@192.0.2.7:5060")
    loaded = load(*GROUPS[command], environment=shown)
    if command in {"stream", "agent", "hook"}:
        # What is asked whether it is ready must be served, and end in order before it is killed.
        assert service["healthcheck"]["test"] == ["CMD", "callyard", "health"]
        assert loaded[HealthSettings].port
        assert float(service["stop_grace_period"].removesuffix("s")) > loaded[HealthSettings].grace_seconds


def test_workers_of_the_hosts_network_have_ports_of_their_own_and_reach_kafka_where_it_is_published() -> None:
    on_host = [SERVICES[name]["environment"] for name in OURS if SERVICES[name].get("network_mode") == "host"]
    assert len({environment["CALLYARD_HEALTH_PORT"] for environment in on_host}) == len(on_host) == 2
    kafka = SERVICES["kafka"]
    assert {f"{environment['CALLYARD_KAFKA_BOOTSTRAP_SERVERS']}:9094" for environment in on_host} == set(kafka["ports"])
    advertised = dict(part.split("://") for part in kafka["environment"]["KAFKA_ADVERTISED_LISTENERS"].split(","))
    assert [environment["CALLYARD_KAFKA_BOOTSTRAP_SERVERS"] for environment in on_host] == [advertised["OUTSIDE"]] * 2
    assert SERVICES["stream-1"]["environment"]["CALLYARD_KAFKA_BOOTSTRAP_SERVERS"] == advertised["INSIDE"]
    assert SERVICES["stream-1"] == SERVICES["stream-2"]


@pytest.mark.kafka
async def test_kafka_takes_what_its_environment_says(tmp_path: Path) -> None:
    environment = SERVICES["kafka"]["environment"]
    ports = {str(number): str(free_port()) for number in (9092, 9093, 9094)}
    properties = {}
    for name, value in environment.items():
        if name.startswith("KAFKA_") and name not in {"KAFKA_HEAP_OPTS", "KAFKA_LOG_DIRS"}:
            # As the image's own entrypoint has it; and everything on loopback, on ports of this test's own.
            text = re.sub(r"\$\{SITE_ADDRESS:-([^}]*)\}", r"\1", value).replace("kafka:", "127.0.0.1:")
            text = re.sub(r"(?<=://):", "127.0.0.1:", text)
            properties[name.removeprefix("KAFKA_").lower().replace("_", ".")] = re.sub(
                r"(?<=:)90\d\d", lambda port: ports[port[0]], text
            )
    async with embedded.running(tmp_path / "kafka", int(ports["9092"]), properties=properties):
        for port in (ports["9092"], ports["9094"]):
            settings = KafkaSettings(bootstrap_servers=f"127.0.0.1:{port}", topic_prefix="compose", partitions=1)
            assert len(await ensure(settings)) == (7 if port == ports["9092"] else 0)
        async with clients.admin(settings) as admin:
            [answer] = await admin.describe_configs([ConfigResource(ConfigResourceType.BROKER, str(embedded.NODE_ID))])
        [(code, _, _, _, entries)] = answer.resources
        assert code == 0
        known = {entry[0]: entry[1] for entry in entries}
        assert {name: known.get(name) for name in properties} == properties


def test_only_one_waits_for_the_profile_of_a_node() -> None:
    assert {name: service["profiles"] for name, service in SERVICES.items() if "profiles" in service} == {
        "hook": ["node"]
    }
    assert set(COMPOSE["secrets"]) == {secret for service in SERVICES.values() for secret in service.get("secrets", [])}
