"""Every manifest against its schema by kubeconform, without a server that is asked.

The schemas are what the API server of the pinned release publishes, and what the CRDs say of custom resources; a field
that a schema does not name is an error. They are stricter than what the server publishes, and never laxer.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from deploy.check.commands import Done, run
from deploy.check.manifests import Document
from deploy.check.report import CheckError
from deploy.check.tools import Tools

_SHARED = "shared-definitions.json"
_OPEN = "x-kubernetes-preserve-unknown-fields"
_INT_OR_STRING = "x-kubernetes-int-or-string"
_NUMBERS_OR_STRINGS = {
    "io.k8s.apimachinery.pkg.api.resource.Quantity",
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString",
}


def write(openapi: Mapping[str, Any], crds: Path, folder: Path) -> int:
    """Write a schema for each kind into the folder; returns how many."""
    folder.mkdir(parents=True)
    (folder / _SHARED).write_text(json.dumps({"definitions": _definitions(openapi)}), encoding="utf-8")
    schemas = {**_of_server(openapi), **_of_crds(crds)}
    for name, schema in schemas.items():
        (folder / name).write_text(json.dumps(schema), encoding="utf-8")
    return len(schemas)


def _definitions(openapi: Mapping[str, Any]) -> dict[str, Any]:
    definitions = {name: _closed(schema) for name, schema in openapi["definitions"].items()}
    for name in _NUMBERS_OR_STRINGS & set(definitions):
        definitions[name] = {"anyOf": [{"type": "string"}, {"type": "number"}]}
    return definitions


def _of_server(openapi: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, schema in openapi["definitions"].items():
        kinds = schema.get("x-kubernetes-group-version-kind", [])
        # What several groups share (DeleteOptions, WatchEvent) is no manifest.
        if len(kinds) == 1:
            kind = kinds[0]
            found[_name(kind["kind"], kind["group"], kind["version"])] = {"$ref": f"{_SHARED}#/definitions/{name}"}
    return found


def _of_crds(crds: Path) -> dict[str, Any]:
    found = {}
    for path in sorted(crds.glob("*.yaml")):
        for crd in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            spec = crd["spec"]
            for version in spec["versions"]:
                schema = _closed(version["schema"]["openAPIV3Schema"])
                properties = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, **schema["properties"]}
                found[_name(spec["names"]["kind"], spec["group"], version["name"])] = {
                    **schema,
                    "properties": {**properties, "metadata": {"type": "object"}},
                }
    return found


def _name(kind: str, group: str, version: str) -> str:
    # kubeconform takes what stands before the slash for the group: of the first API, which has none, the version.
    return "_".join([kind.lower(), group or version, version]) + ".json"


def _closed(schema: Any) -> Any:
    """The schema, but what it does not name is not allowed, and null only where it says so."""
    if not isinstance(schema, dict):
        return schema
    if schema.get(_INT_OR_STRING):
        return {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    # Formats are Go's (int32, byte), of which JSON Schema knows nothing.
    closed = {key: value for key, value in schema.items() if not key.startswith("x-") and key != "format"}
    if "properties" in schema:
        closed["properties"] = {name: _closed(inner) for name, inner in schema["properties"].items()}
        if not schema.get(_OPEN):
            closed.setdefault("additionalProperties", False)
    if "items" in schema:
        closed["items"] = _closed(schema["items"])
    if isinstance(closed.get("additionalProperties"), dict):
        closed["additionalProperties"] = _closed(schema["additionalProperties"])
    if schema.get("nullable") and "type" in schema:
        closed["type"] = [schema["type"], "null"]
    return closed


async def check(tools: Tools, folder: Path, documents: Sequence[Document]) -> int:
    """Hold these against the schemas; returns how many there were. Raises `CheckError` in kubeconform's words."""
    done = await _kubeconform(tools, folder, documents)
    if done.status != 0:
        raise CheckError(done.out.strip() or done.words())
    return len(documents)


async def refused(tools: Tools, folder: Path, document: Document, because: str) -> None:
    """A manifest that is wrong must be refused, for this reason: a check that can't fail is none."""
    done = await _kubeconform(tools, folder, [document])
    if done.status == 0:
        raise CheckError(
            f"kubeconform takes {document['kind']} {document['metadata']['name']}, which is wrong: {because}"
        )
    if because not in done.out:
        raise CheckError(f"kubeconform refuses it for another reason than {because!r}: {done.out}")


async def _kubeconform(tools: Tools, folder: Path, documents: Sequence[Document]) -> Done:
    location = f"{folder}/{{{{ .ResourceKind }}}}_{{{{ .Group }}}}_{{{{ .ResourceAPIVersion }}}}.json"
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump_all(documents, file)
        file.flush()
        return await run(tools.kubeconform, "-strict", "-schema-location", location, file.name)
