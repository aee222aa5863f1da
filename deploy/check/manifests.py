"""The manifests under deploy/kubernetes as kustomize renders them, and the pods that their workloads would make.

Each overlay is rendered, and each component that no overlay has, upon the largest one. A file that nothing reaches is
found: it would be applied by nobody and checked by nobody.
"""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deploy.check.commands import must
from deploy.check.report import CheckError
from deploy.check.tools import Tools

KUSTOMIZATION = "kustomization.yaml"
LARGEST = "production"
"""The overlay upon which components are tried that none has."""
Document = dict[str, Any]


@dataclass(frozen=True)
class Rendered:
    """What one ``kubectl apply -k`` would send."""

    name: str
    text: str
    documents: tuple[Document, ...]

    def find(self, kind: str, name: str | None = None) -> Document:
        """A resource of a kind, the first one where no name is given. Raises `CheckError` where there is none."""
        for document in self.documents:
            if document["kind"] == kind and name in {None, document["metadata"]["name"]}:
                return document
        raise CheckError(f"{self.name} renders no {kind} {name or ''}")


async def render(tools: Tools, directory: Path, name: str) -> Rendered:
    """Render one folder. Raises `CheckError` in kustomize's words; a warning of it is a failure, too."""
    done = await must(tools.kustomize, "build", directory)
    if done.err.strip():
        raise CheckError(done.words())
    return Rendered(name, done.out, tuple(document for document in yaml.safe_load_all(done.out) if document))


async def render_with(tools: Tools, overlay: Path, component: Path) -> Rendered:
    """Render an overlay and a component of ours upon it."""
    with tempfile.TemporaryDirectory() as name:
        # kustomize takes relative paths only, and takes them from where the folder really is.
        directory = Path(name).resolve()
        own = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [os.path.relpath(overlay, directory)],
            "components": [os.path.relpath(component, directory)],
        }
        (directory / KUSTOMIZATION).write_text(yaml.safe_dump(own), encoding="utf-8")
        return await render(tools, directory, f"{overlay.name} + {component.name}")


def unreached(root: Path) -> tuple[list[Path], list[Path]]:
    """The components that no overlay has, and the files that neither overlays nor components reach."""
    overlays, components = sorted((root / "overlays").iterdir()), sorted((root / "components").iterdir())
    reached = {file for overlay in overlays for file in _files(overlay)}
    alone = [component for component in components if component / KUSTOMIZATION not in reached]
    reached |= {file for component in alone for file in _files(component)}
    files = {path for path in root.rglob("*") if path.is_file() and path.suffix != ".md"}
    return alone, sorted(files - reached)


def _files(directory: Path) -> Iterator[Path]:
    """The files that a folder's kustomization reads, itself included; those of the folders that it names, too."""
    own = directory / KUSTOMIZATION
    yield own
    content = yaml.safe_load(own.read_text(encoding="utf-8"))
    for word in _words(content):
        # `name=path` gives a generated file another name; a word may also hold several lines of an inline patch.
        named = word.rpartition("=")[2]
        if not named or "\n" in named or len(named) > 255:
            continue
        path = Path(os.path.normpath(directory / named))
        if path.is_file():
            yield path
        elif path != directory and (path / KUSTOMIZATION).is_file():
            yield from _files(path)


def _words(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _words(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _words(inner)


def pods(documents: Sequence[Document]) -> list[Document]:
    """The pods that controllers would make of these: admission looks at pods, not at what makes them."""
    return [pod for document in documents if (pod := _pod(document)) is not None]


def _pod(document: Document) -> Document | None:
    if document["kind"] == "Pod":
        return copy.deepcopy(document)
    spec = document.get("spec", {})
    if document["kind"] == "CronJob":
        spec = spec["jobTemplate"]["spec"]
    elif document["kind"] not in {"Deployment", "StatefulSet", "DaemonSet", "Job"}:
        return None
    template = copy.deepcopy(spec["template"])
    metadata = template.setdefault("metadata", {})
    metadata["name"] = document["metadata"]["name"] + ("-0" if document["kind"] == "StatefulSet" else "")
    metadata["namespace"] = document["metadata"].get("namespace", "default")
    for claim in spec.get("volumeClaimTemplates", ()):
        volume = {"name": claim["metadata"]["name"], "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]}}
        template["spec"].setdefault("volumes", []).append(volume)
    if document["kind"] in {"Job", "CronJob"}:
        template["spec"].setdefault("restartPolicy", "Never")
    return {"apiVersion": "v1", "kind": "Pod", **template}
