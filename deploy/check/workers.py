"""The images' workers as real containers: a caller is put through by them, and each ends when it is told to.

The stream and the gateway (Asterisk and its agents) are the pods that the overlay renders; the hook, which belongs on a
node without Kubernetes, is a container as confined as they are. A gateway's pod is ended as the kubelet does: its hook
first, then Asterisk, then the sidecars.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from callyard.parts import sipp
from callyard.parts.ports import LOOPBACK
from deploy.check import pods, site
from deploy.check.containers import Podman
from deploy.check.image import CONFINED, USER, Image
from deploy.check.manifests import Document, Rendered
from deploy.check.manifests import pods as rendered_pods
from deploy.check.report import CheckError, Report
from deploy.check.running import READY_SECONDS, Containers, get

CONFERENCE = "49001"
PARKED = 'callyard_stream_callers{state="parked"} 1.0'
"""The stream's metrics, once the caller waits."""
HOOK = "hook"
HOOK_GRACE = 15
"""TimeoutStopSec of its systemd unit."""


class Started(NamedTuple):
    """A container that is ready, and how it is to be ended: ``before`` the signal, a command in it."""

    name: str
    grace: int
    before: tuple[str, ...] = ()


async def check(report: Report, podman: Podman, image: Image, rendered: Rendered, directory: Path) -> None:
    """All of it, a line for each check. What can't be tried because of a failure is left out."""
    containers = Containers(podman)
    started: list[Started] = []
    failed = report.failed
    async with site.running(rendered, directory) as around:
        with report.check("container: callyard topics --check") as say:
            environment = {"CALLYARD_KAFKA_BOOTSTRAP_SERVERS": around.kafka.plain.bootstrap_servers}
            environment["CALLYARD_KAFKA_REPLICATION_FACTOR"] = str(around.kafka.plain.replication_factor)
            options = (*CONFINED, "--network=host", *_variables(environment))
            topics = json.loads(await podman.must("run", "--rm", *options, image.tag, "topics", "--check", "--json"))
            say(f"{len(topics)} topics, made as they are rendered, are as they must be")
        for pod in rendered_pods(rendered.documents):
            started += await _pod(report, containers, around, pod)
        with report.check("container: hook") as say:
            secrets = _files(directory / HOOK, around.files)
            options = (*CONFINED, "--network=host", f"--volume={secrets}:{site.FOLDER}:ro", *_variables(around.hook))
            await podman.must("run", "--detach", f"--name={HOOK}", *options, image.tag, "hook")
            say(await containers.ready(HOOK, lambda: _is_200(around.ports["hook"], "/readyz")))
            started.append(Started(HOOK, HOOK_GRACE))
        if report.failed == failed:
            with report.check("a caller, through these containers") as say:
                say(await _call(around, directory))
        for one in started:
            with report.check(f"SIGTERM: {one.name}") as say:
                say(await _end(containers, one))


async def _pod(report: Report, containers: Containers, around: site.Site, pod: Document) -> list[Started]:
    """Start a pod and wait for each container's readiness, as its probe asks for it."""
    started = []
    adapted = None
    with report.check(f"pod: {pod['metadata']['name']}") as say:
        adapted = pods.adapt(pod, around.around)
        await containers.play(adapted)
        say(f"{len(adapted.first)} containers ran first, {len(adapted.containers)} run")
    if adapted is None:
        return []
    for name, rendered in adapted.containers.items():
        with report.check(f"container: {adapted.name}-{name}") as say:
            container = f"{adapted.name}-{name}"
            say(await containers.ready(container, _probe(containers, container, rendered, around.ports.get(name))))
            before = rendered.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ())
            started.append(Started(container, adapted.grace, tuple(before)))
    # The kubelet ends sidecars last, and the last one first.
    return started[::-1]


def _probe(
    containers: Containers, container: str, rendered: Document, port: int | None
) -> Callable[[], Awaitable[bool]]:  # fmt: skip
    probe = rendered["readinessProbe"]
    if "exec" in probe:

        async def asked() -> bool:
            return await containers.execute(container, *probe["exec"]["command"]) == 0

        return asked
    named = next((one for one in rendered["ports"] if one["name"] == probe["httpGet"]["port"]), None)
    if named is None or port is None:
        raise CheckError(f"{container} has no port {probe['httpGet']['port']}, which its probe asks")

    async def healthy() -> bool:
        return await _is_200(port, probe["httpGet"]["path"])

    return healthy


async def _is_200(port: int, path: str) -> bool:
    status, _ = await get(port, path)
    return status == 200


async def _call(around: site.Site, directory: Path) -> str:
    """A caller waits for a conference, which begins; returns how long it then took. Raises `CheckError`."""
    calls = [sipp.Call("+493012345678", f"{CONFERENCE}#")]
    async with sipp.calling(directory / "caller", (LOOPBACK, around.sip_port), calls) as caller:
        deadline = time.monotonic() + READY_SECONDS
        while PARKED not in (await get(around.ports["stream"], "/metrics"))[1].splitlines():
            if time.monotonic() > deadline:
                raise CheckError(f"the caller did not come to wait within {READY_SECONDS:.0f} s: {caller.events()}")
            await asyncio.sleep(0.05)
        opened = time.time()
        around.control.open(CONFERENCE)
        [talking, *more] = await around.node.saw("answered", timeout=30)
        if more or talking.conference != CONFERENCE:
            raise CheckError(f"the node talks to {[talking, *more]}")
        await caller.hang_up()
    return f"put through {1000 * (talking.at - opened):.0f} ms after the conference had begun"


async def _end(containers: Containers, one: Started) -> str:
    note = ""
    if one.before:
        began = time.monotonic()
        if await containers.execute(one.name, *one.before) != 0:
            raise CheckError(f"{' '.join(one.before)} failed:\n{await containers.log(one.name)}")
        note = f"{' '.join(one.before)} {time.monotonic() - began:.1f} s, then "
    return note + await containers.stop(one.name, one.grace)


def _variables(environment: Mapping[str, str]) -> list[str]:
    return [f"--env={name}={value}" for name, value in environment.items()]


def _files(folder: Path, content: Mapping[str, str]) -> Path:
    """A folder of secrets that only the container's user reads."""
    folder.mkdir(parents=True)
    for name, text in content.items():
        (folder / name).write_text(text, encoding="utf-8")
        os.chown(folder / name, USER, USER)
        (folder / name).chmod(0o400)
    return folder
