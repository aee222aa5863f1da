"""What a real API server says of the manifests: a server-side dry run of all of them, and of the pods they would make.

Namespaces and service accounts are written for real, because the server asks for them; nothing else is. A warning of
the server counts as a refusal.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import NamedTuple

from deploy.check.apiserver import Cluster
from deploy.check.manifests import Document, Rendered, pods
from deploy.check.report import CheckError

WRITTEN = ("Namespace", "ServiceAccount")
RESTRICTED = "pod-security.kubernetes.io/enforce"


class Broken(NamedTuple):
    """A manifest of ours with one fault, and the server's words about that fault."""

    fault: str
    document: Document
    because: str
    schema: bool = True
    """Whether a schema can tell, too."""


async def check(cluster: Cluster, rendered: Rendered) -> str:
    """Try all of it; returns what was tried. Raises `CheckError` in the server's words."""
    namespaces = [document for document in rendered.documents if document["kind"] == "Namespace"]
    for document in namespaces:
        await cluster.namespace(document)
    await cluster.apply([document for document in rendered.documents if document["kind"] == "ServiceAccount"])
    rest = [document for document in rendered.documents if document["kind"] not in WRITTEN]
    made = pods(rest)
    done = await cluster.try_apply([*rest, *made])
    if done.status != 0 or "warning" in done.err.lower():
        raise CheckError(done.err.strip() or done.words())
    answered = len(done.out.splitlines())
    if answered != len(rest) + len(made):
        raise CheckError(f"{len(rest) + len(made)} were sent, and the server answered for {answered}:\n{done.out}")
    levels = sorted({document["metadata"].get("labels", {}).get(RESTRICTED, "no level") for document in namespaces})
    return f"{len(rest)} resources and {len(made)} pods of theirs accepted (namespaces: {', '.join(levels)})"


def broken(rendered: Rendered) -> list[Broken]:
    """What must be refused: an unknown field, the host's network in a restricted namespace, a topic's wrong field."""
    restricted = {
        document["metadata"]["name"]
        for document in rendered.documents
        if document["kind"] == "Namespace" and _labels(document).get(RESTRICTED) == "restricted"
    }
    deployment = copy.deepcopy(rendered.find("Deployment"))
    deployment["spec"]["replica"] = 3
    pod = next((pod for pod in pods(rendered.documents) if pod["metadata"]["namespace"] in restricted), None)
    if pod is None:
        raise CheckError(f"{rendered.name} has no workload in a restricted namespace")
    pod["spec"]["hostNetwork"] = True
    topic = copy.deepcopy(rendered.find("KafkaTopic"))
    topic["spec"]["partition"] = topic["spec"].pop("partitions")
    return [
        Broken("an unknown field in a Deployment", deployment, "replica"),
        Broken("the host's network in a restricted namespace", pod, "violates PodSecurity", schema=False),
        Broken("a wrong field in a KafkaTopic", topic, "partition"),
    ]


def _labels(document: Document) -> Mapping[str, str]:
    labels: Mapping[str, str] = document["metadata"].get("labels", {})
    return labels


async def refused(cluster: Cluster, one: Broken) -> None:
    """The server must refuse it, for its fault: a check that can't fail is none. Raises `CheckError`."""
    done = await cluster.try_apply([one.document])
    if done.status == 0:
        raise CheckError(f"the server takes {one.fault}")
    if one.because not in done.err:
        raise CheckError(f"the server refuses {one.fault} for another reason: {done.words()}")
