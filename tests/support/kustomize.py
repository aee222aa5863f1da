"""As much of kustomize as deploy/kubernetes uses, so that `make test` looks at what a site would get.

`make manifests` renders with kustomize itself. Names aren't given the digest of their content here. What isn't known
raises: a field that this overlooked would make the tests blind.
"""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import yaml

KUBERNETES = Path(__file__).parent.parent.parent / "deploy" / "kubernetes"
OVERLAYS = ("small", "production", "autoscaled")

Document = dict[str, Any]


def documents(file: Path) -> list[Document]:
    """The documents of a YAML file, in which no two places are the same object: anchors only save writing."""
    found = yaml.safe_load_all(file.read_text(encoding="utf-8"))
    return [json.loads(json.dumps(document)) for document in found if document is not None]


@cache
def _rendered(overlay: str) -> list[Document]:
    return _build(KUBERNETES / "overlays" / overlay, [])


def rendered(overlay: str) -> list[Document]:
    """All resources of an overlay."""
    return copy.deepcopy(_rendered(overlay))


def of(found: list[Document], kind: str, name: str | None = None) -> list[Document]:
    """Those of a kind, and of a name."""
    return [one for one in found if one["kind"] == kind and name in {None, one["metadata"]["name"]}]


def one_of(found: list[Document], kind: str, name: str) -> Document:
    [one] = of(found, kind, name)
    return one


def pod_specs(found: list[Document]) -> list[tuple[str, Document]]:
    """The pods that the workloads make: whose they are, and their specs."""
    return [
        (one["metadata"]["name"], one["spec"]["template"]["spec"])
        for one in found
        if one["kind"] in {"Deployment", "StatefulSet", "Job", "DaemonSet"}
    ]


def containers(spec: Document) -> list[Document]:
    return [*spec.get("initContainers", []), *spec["containers"]]


def _build(folder: Path, below: list[Document]) -> list[Document]:
    [settings] = documents(folder / "kustomization.yaml")
    settings = dict(settings)
    component = settings.pop("kind") == "Component"
    settings.pop("apiVersion")
    found = below if component else []
    for name in settings.pop("resources", []):
        path = folder / name
        found += _build(path, []) if path.is_dir() else documents(path)
    for name in settings.pop("components", []):
        found = _build(folder / name, found)
    for generator in settings.pop("configMapGenerator", []):
        _config_map(folder, dict(generator), found)
    for patch in settings.pop("patches", []):
        _patch(folder, patch, found)
    _transform(settings, found)
    assert settings == {}, f"{folder} has {list(settings)}, which isn't known here"
    return found


def _transform(settings: Document, found: list[Document]) -> None:
    namespace, suffix = settings.pop("namespace", None), settings.pop("nameSuffix", "")
    for one in found:
        if namespace is not None and one["kind"] != "Namespace":
            one["metadata"]["namespace"] = namespace
        one["metadata"]["name"] += suffix
    for replicas in settings.pop("replicas", []):
        for one in (*of(found, "Deployment", replicas["name"]), *of(found, "StatefulSet", replicas["name"])):
            one["spec"]["replicas"] = replicas["count"]
    images = {image["name"]: f"{image['newName']}:{image['newTag']}" for image in settings.pop("images", [])}
    for _, spec in pod_specs(found):
        for container in containers(spec):
            container["image"] = images.get(container["image"], container["image"])
    for labels in settings.pop("labels", []):
        assert labels["includeTemplates"] is True
        for one in found:
            one["metadata"].setdefault("labels", {}).update(labels["pairs"])
            if "template" in one.get("spec", {}):
                one["spec"]["template"]["metadata"]["labels"].update(labels["pairs"])


def _config_map(folder: Path, generator: Document, found: list[Document]) -> None:
    data: dict[str, str] = {}
    for name in generator.pop("envs", []):
        lines = (folder / name).read_text(encoding="utf-8").splitlines()
        data.update(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    for name in generator.pop("files", []):
        data[name] = (folder / name).read_text(encoding="utf-8")
    name, behavior = generator.pop("name"), generator.pop("behavior", "create")
    namespace = generator.pop("namespace", None)
    assert generator == {}, f"{folder}: {list(generator)} isn't known here"
    if behavior == "create":
        found.append({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": name}, "data": data})
        return
    there = one_of(found, "ConfigMap", name)
    assert there["metadata"]["namespace"] == namespace
    there["data"] = {**(there["data"] if behavior == "merge" else {}), **data}


def _patch(folder: Path, patch: Document, found: list[Document]) -> None:
    text = patch["patch"] if "patch" in patch else (folder / patch["path"]).read_text(encoding="utf-8")
    target = patch["target"]
    concerned = of(found, target["kind"], target.get("name"))
    for operation in yaml.safe_load(text):
        for one in concerned:
            _operate(one, operation)


def _operate(document: Document, operation: Document) -> None:
    *path, last = operation["path"].strip("/").split("/")
    there: Any = document
    for step in path:
        there = there[int(step)] if isinstance(there, list) else there[step]
    key: Any = int(last) if isinstance(there, list) and last != "-" else last
    match operation["op"]:
        case "add" if last == "-":
            there.append(copy.deepcopy(operation["value"]))
        case "add":
            there[key] = copy.deepcopy(operation["value"])
        case "replace":
            assert key in there or isinstance(there, list)
            there[key] = operation["value"]
        case "remove":
            del there[key]
        case other:
            raise AssertionError(f"{other} isn't known here")
