"""What ``make manifests`` makes of manifests and images before real programs judge them."""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from callyard.errors import CommandError
from deploy.check import contents, manifests, pods, schemas
from deploy.check.report import CheckError, Report

KUBERNETES = Path(__file__).parent.parent / "deploy" / "kubernetes"


def test_a_check_that_fails_is_told_and_the_next_one_goes_on() -> None:
    lines: list[str] = []
    report = Report(lines.append)
    with report.check("first"):
        raise CheckError("it is wrong\nthere")
    with report.check("second") as say:
        say("good")
    with pytest.raises(ZeroDivisionError), report.check("third"):
        raise ZeroDivisionError
    assert [line.split(" s  ")[-1].strip() for line in lines] == ["first: it is wrong", "there", "second: good"]
    assert (report.passed, report.failed) == (1, 1)


def test_every_file_is_reached_and_one_that_is_not_is_found(tmp_path: Path) -> None:
    root = tmp_path / "kubernetes"
    shutil.copytree(KUBERNETES, root)
    assert manifests.unreached(root) == ([], [])
    (root / "base" / "forgotten.yaml").write_text("kind: Nothing\n")
    (root / "components" / "lonely").mkdir()
    (root / "components" / "lonely" / "kustomization.yaml").write_text("kind: Component\n")
    alone, lost = manifests.unreached(root)
    assert [path.name for path in alone] == ["lonely"]
    assert [path.name for path in lost] == ["forgotten.yaml"]


def workload(kind: str, **spec: Any) -> dict[str, Any]:
    template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "one", "image": "callyard"}]}}
    return {"kind": kind, "metadata": {"name": "w", "namespace": "n"}, "spec": {"template": template, **spec}}


def test_the_pods_of_workloads_are_those_that_controllers_make() -> None:
    claims = [{"metadata": {"name": "data"}}]
    found = manifests.pods(
        [workload("Deployment"), workload("StatefulSet", volumeClaimTemplates=claims), {"kind": "ConfigMap"}]
    )
    assert [pod["metadata"]["name"] for pod in found] == ["w", "w-0"]
    assert {pod["metadata"]["namespace"] for pod in found} == {"n"}
    claim = {"name": "data", "persistentVolumeClaim": {"claimName": "data"}}
    assert found[1]["spec"]["volumes"] == [claim]


def rendered_pod() -> dict[str, Any]:
    hardened = {"readOnlyRootFilesystem": True}
    return {
        "metadata": {"name": "gateway-0"},
        "spec": {
            "terminationGracePeriodSeconds": 30,
            "securityContext": {"runAsUser": 10001, "fsGroup": 0},
            "initContainers": [
                {"name": "render", "image": "callyard", "args": ["render"]},
                {"name": "agent", "image": "callyard", "restartPolicy": "Always", "securityContext": hardened},
            ],
            "containers": [{
                "name": "asterisk", "image": "asterisk", "readinessProbe": {"exec": {}},
                "envFrom": [{"configMapRef": {"name": "settings-abc"}}],
                "env": [{"name": "ID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            }],
            "volumes": [
                {"name": "work", "emptyDir": {}},
                {"name": "kafka", "projected": {"defaultMode": 0o440, "sources": [
                    {"secret": {"name": "user", "items": [{"key": "password", "path": "word"}]}},
                ]}},
            ],
        },
    }  # fmt: skip


def surroundings(directory: Path, **secrets: dict[str, str]) -> pods.Surroundings:
    settings = {"settings-abc": {"PORT": "9102", "KEPT": "yes"}}
    return pods.Surroundings(directory, secrets, lambda _container: {"PORT": "1"}, settings)


def test_a_pod_keeps_what_confines_it_and_gets_what_a_cluster_would_give_it(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("owners can be set by root only")
    adapted = pods.adapt(rendered_pod(), surroundings(tmp_path, user={"password": "secret"}))
    assert [first["metadata"]["name"] for first in adapted.first] == ["gateway-0-render"]
    assert list(adapted.containers) == ["agent", "asterisk"], "a sidecar lasts, and begins before the others"
    assert adapted.grace == 30
    agent, asterisk = adapted.pod["spec"]["containers"]
    assert agent["securityContext"] == {"readOnlyRootFilesystem": True}
    assert adapted.environments["asterisk"] == {"PORT": "1", "KEPT": "yes", "ID": "gateway-0"}
    assert "readinessProbe" not in asterisk
    word = tmp_path / "gateway-0" / "kafka" / "word"
    assert (word.read_text(), word.stat().st_mode & 0o777) == ("secret", 0o440)


@pytest.mark.parametrize("secrets", [{}, {"user": {"other": "x"}}])
def test_a_secret_or_a_key_that_nobody_would_give_is_named(tmp_path: Path, secrets: dict[str, dict[str, str]]) -> None:
    with pytest.raises(CommandError, match="user"):
        pods.adapt(rendered_pod(), surroundings(tmp_path, **secrets))


def test_what_an_image_must_not_hold_is_found(tmp_path: Path) -> None:
    packages = tmp_path / "opt" / "callyard" / "lib" / "python3.13" / "site-packages"
    (packages / "__pycache__").mkdir(parents=True)
    for name, flags in (("good", 0b01), ("dated", 0b00)):
        (packages / f"{name}.py").touch()
        (packages / "__pycache__" / f"{name}.cpython-313.pyc").write_bytes(b"\xf3\r\r\n" + struct.pack("<I", flags))
    assert [line.rpartition("/")[2] for line in contents.findings(tmp_path)] == ["dated.py"]
    (packages / "dated.py").unlink()
    assert contents.findings(tmp_path) == []
    (packages / "pip").mkdir()
    (tmp_path / "etc").mkdir()
    key = "-----BEGIN EC PRIVATE KEY-----\n" + "A" * 64
    (tmp_path / "etc" / "node.key").write_text(key)
    (tmp_path / "build" / "tests").mkdir(parents=True)
    found = "\n".join(sorted(contents.findings(tmp_path)))
    assert found.count("\n") == 2
    for word in ("site-packages/pip", "node.key holds a private key", "/build/tests came along"):
        assert word in found


def test_a_schema_allows_no_field_that_it_does_not_name() -> None:
    inner = {"type": "object", "properties": {"a": {"type": "integer", "format": "int32"}}}
    free = {"type": "object", "properties": {}, "x-kubernetes-preserve-unknown-fields": True}
    closed = schemas._closed({"type": "object", "properties": {"inner": inner, "free": free}})
    assert closed["additionalProperties"] is False
    assert closed["properties"]["inner"] == {
        "type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": False,
    }  # fmt: skip
    assert "additionalProperties" not in closed["properties"]["free"]
