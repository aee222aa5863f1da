"""Rendered pods as podman takes them: what a cluster would give them is put in, all else stays as it was rendered.

Put in are settings and secrets (environment and files, owned and readable as the kubelet makes them), pod and host
addresses, empty volumes, and the host's network, because Kafka listens on 127.0.0.1. Left out are probes and hooks,
which are called from here instead, and what places a pod. Kept are images, arguments, mounts, limits and all that
confines a container. Containers that are to end before the others begin become pods of their own.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.check.manifests import Document, Rendered
from deploy.check.report import CheckError

HOST = "127.0.0.1"
_DEFAULT_MODE = 0o644
_KEPT = ("name", "image", "command", "args", "workingDir", "securityContext", "volumeMounts")
_KEPT_OF_POD = ("securityContext", "hostAliases", "terminationGracePeriodSeconds")
Contents = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Surroundings:
    """What a cluster would give a pod. ``changes`` are what must be otherwise here, by container."""

    directory: Path
    secrets: Contents
    changes: Callable[[str], Mapping[str, str]]
    config_maps: Contents


def config_maps(rendered: Rendered, **replaced: Mapping[str, str]) -> Contents:
    """The rendered ones; ``replaced``: other contents, by the name without the hash (and ``_`` for ``-``)."""
    found = {one["metadata"]["name"]: one.get("data", {}) for one in rendered.documents if one["kind"] == "ConfigMap"}
    for name, content in replaced.items():
        stem = name.replace("_", "-")
        matching = [known for known in found if known.rpartition("-")[0] == stem]
        if not matching:
            raise CheckError(f"{rendered.name} has no ConfigMap {stem}")
        found.update(dict.fromkeys(matching, content))
    return found


@dataclass(frozen=True)
class Adapted:
    """``first``: the pods that must have ended well before ``pod`` begins. ``containers``: as they were rendered."""

    first: tuple[Document, ...]
    pod: Document
    containers: Mapping[str, Document]
    environments: Mapping[str, Mapping[str, str]]

    @property
    def name(self) -> str:
        return str(self.pod["metadata"]["name"])

    @property
    def grace(self) -> int:
        """Seconds that it is given to end in order."""
        return int(self.pod["spec"]["terminationGracePeriodSeconds"])


def adapt(rendered: Document, around: Surroundings) -> Adapted:
    """Raises `CheckError` where it asks for something that nobody would give it."""
    name, spec = rendered["metadata"]["name"], rendered["spec"]
    group = spec.get("securityContext", {}).get("fsGroup", 0)
    volumes = [_volume(volume, around, around.directory / name, group) for volume in spec.get("volumes", ())]
    sidecars = [one for one in spec.get("initContainers", ()) if one.get("restartPolicy") == "Always"]
    once = [one for one in spec.get("initContainers", ()) if one.get("restartPolicy") != "Always"]
    lasting = [*sidecars, *spec["containers"]]
    environments = {one["name"]: _environment(one, name, around) for one in [*once, *lasting]}

    def made(pod: str, containers: list[Document]) -> Document:
        adapted = {key: copy.deepcopy(spec[key]) for key in _KEPT_OF_POD if key in spec}
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": pod},
            "spec": {
                **adapted,
                "hostNetwork": True,
                "restartPolicy": "Never",
                "containers": [_container(one, environments[one["name"]]) for one in containers],
                "volumes": volumes,
            },
        }

    return Adapted(
        first=tuple(made(f"{name}-{one['name']}", [one]) for one in once),
        pod=made(name, lasting),
        containers={one["name"]: one for one in lasting},
        environments=environments,
    )


def _container(rendered: Document, environment: Mapping[str, str]) -> Document:
    kept = {key: copy.deepcopy(rendered[key]) for key in _KEPT if key in rendered}
    limits = rendered.get("resources", {}).get("limits", {})
    return {
        **kept,
        "imagePullPolicy": "Never",
        "resources": {"limits": dict(limits)},
        "env": [{"name": name, "value": value} for name, value in environment.items()],
    }


def _environment(container: Document, pod: str, around: Surroundings) -> dict[str, str]:
    found: dict[str, str] = {}
    for source in container.get("envFrom", ()):
        found.update(_content(around.config_maps, source["configMapRef"]["name"], "ConfigMap"))
    for one in container.get("env", ()):
        found[one["name"]] = one["value"] if "value" in one else _value(one["valueFrom"], pod, around)
    return {**found, **around.changes(container["name"])}


def _value(source: Mapping[str, Any], pod: str, around: Surroundings) -> str:
    if "fieldRef" in source:
        known = {"metadata.name": pod, "status.podIP": HOST, "status.hostIP": HOST}
        return known[source["fieldRef"]["fieldPath"]]
    reference = source["secretKeyRef"]
    return _content(around.secrets, reference["name"], "Secret")[reference["key"]]


def _content(known: Contents, name: str, kind: str) -> Mapping[str, str]:
    if name not in known:
        raise CheckError(f"there is no {kind} {name}: there are {', '.join(sorted(known))}")
    return known[name]


def _volume(volume: Document, around: Surroundings, directory: Path, group: int) -> Document:
    """A folder of this machine with what the volume would hold, owned and readable as the kubelet makes it."""
    place = directory / volume["name"]
    place.mkdir(parents=True)
    if "emptyDir" in volume:
        os.chown(place, 0, group)
        place.chmod(0o2777)
    elif "projected" in volume:
        for source in volume["projected"]["sources"]:
            _files(place, source, around, volume["projected"].get("defaultMode", _DEFAULT_MODE), group)
    else:
        kind = next(kind for kind in ("configMap", "secret") if kind in volume)
        _files(place, volume, around, volume[kind].get("defaultMode", _DEFAULT_MODE), group)
    return {"name": volume["name"], "hostPath": {"path": str(place), "type": "Directory"}}


def _files(place: Path, source: Mapping[str, Any], around: Surroundings, mode: int, group: int) -> None:
    if "configMap" in source:
        reference = source["configMap"]
        content = _content(around.config_maps, reference["name"], "ConfigMap")
    else:
        reference = source["secret"]
        content = _content(around.secrets, reference.get("name") or reference["secretName"], "Secret")
    items = reference.get("items") or [{"key": key, "path": key} for key in content]
    for item in items:
        if item["key"] not in content:
            raise CheckError(f"{reference} asks for {item['key']}, and there is {', '.join(content)}")
        file = place / item["path"]
        file.write_text(content[item["key"]], encoding="utf-8")
        os.chown(file, 0, group)
        file.chmod(item.get("mode", mode))
