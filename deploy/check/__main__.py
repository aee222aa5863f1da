"""``make manifests``, ``python -m deploy.check``: every check in order, a line each, exit status 1 where one fails."""

from __future__ import annotations

import asyncio
import enum
import shutil
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated

import typer

from callyard.cache import locked
from deploy.check import apiserver, dryrun, files, image, manifests, schemas, workers
from deploy.check.containers import Podman
from deploy.check.image import Image
from deploy.check.manifests import LARGEST, Rendered
from deploy.check.report import CheckError, Report
from deploy.check.tools import KUBERNETES, Tools, prepare

REPOSITORY = Path(__file__).resolve().parents[2]
DEPLOY = REPOSITORY / "deploy"
MANIFESTS = DEPLOY / "kubernetes"
CRDS = REPOSITORY / "tests" / "fixtures" / "crds"
CALLYARD = Image("registry.example.org/callyard:0.1.0", "Dockerfile", "trixie")
# Debian's archive of all days can't be reached from everywhere: the newest packages of the same suite stand in.
ASTERISK = Image("registry.example.org/callyard-asterisk:22", "asterisk.Dockerfile", "sid", (("SNAPSHOT", ""),))


class Part(str, enum.Enum):
    """What can be checked alone."""

    files = "files"
    manifests = "manifests"
    containers = "containers"


def command(
    only: Annotated[list[Part] | None, typer.Option(help="Only this part (may be repeated).")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the folder of logs of a good run, too.")] = False,
) -> None:
    """Check everything under deploy/ by the programs that will read it. See docs/deploy-checks.md."""
    folder = Path(tempfile.mkdtemp(prefix="callyard-manifests-"))
    report = Report(lambda line: print(line, flush=True))  # noqa: T201 - the report is what this prints
    try:
        asyncio.run(check(report, frozenset(only or Part), folder))
    finally:
        if report.failed or keep:
            print(f"Logs and volumes are in {folder}")  # noqa: T201
        else:
            shutil.rmtree(folder)
    print(report.summary())  # noqa: T201
    if report.failed:
        raise typer.Exit(1)


async def check(report: Report, parts: frozenset[Part], folder: Path) -> None:
    """All checks of these parts. Without the tools there is nothing to check."""
    tools: Tools | None = None
    with report.check("tools") as say:
        tools = await prepare()
        say(f"Kubernetes {KUBERNETES}, in {tools.folder.parent.name}/{tools.folder.name}")
    if tools is None:
        return
    if Part.files in parts:
        await check_files(report, tools)
    rendered: list[Rendered] = []
    if parts & {Part.manifests, Part.containers}:
        rendered = await render(report, tools)
    if Part.manifests in parts:
        await check_manifests(report, tools, rendered, folder)
    if Part.containers in parts:
        await check_containers(report, tools, rendered, folder)


async def check_files(report: Report, tools: Tools) -> None:
    with report.check("promtool: alert rules") as say:
        say(await files.rules(tools, DEPLOY / "monitoring"))
    with report.check("hadolint: Dockerfiles") as say:
        say(await files.dockerfiles(tools, DEPLOY / "image"))
    with report.check("systemd: units") as say:
        say(await files.units(DEPLOY / "systemd"))


async def render(report: Report, tools: Tools) -> list[Rendered]:
    """Each overlay, and each component that none has."""
    found: list[Rendered] = []
    alone: list[Path] = []
    with report.check("kustomize: files") as say:
        alone, lost = await asyncio.to_thread(manifests.unreached, MANIFESTS)
        if lost:
            raise CheckError("nothing reaches " + ", ".join(str(path.relative_to(REPOSITORY)) for path in lost))
        say("each one is reached")
    overlays = sorted(path for path in (MANIFESTS / "overlays").iterdir() if path.is_dir())
    for overlay in overlays:
        with report.check(f"kustomize: {overlay.name}") as say:
            found.append(await manifests.render(tools, overlay, overlay.name))
            say(f"{len(found[-1].documents)} resources")
    for component in alone:
        with report.check(f"kustomize: {LARGEST} + {component.name}") as say:
            found.append(await manifests.render_with(tools, MANIFESTS / "overlays" / LARGEST, component))
            say(f"{len(found[-1].documents)} resources")
    return found


async def check_manifests(report: Report, tools: Tools, rendered: list[Rendered], folder: Path) -> None:
    """Each rendering in an empty cluster of its own, so that none finds what another one made."""
    for one in rendered:
        place = folder / one.name.replace(" ", "")
        cluster: apiserver.Cluster | None = None
        async with AsyncExitStack() as stack:
            with report.check(f"kube-apiserver: {one.name}") as say:
                cluster = await stack.enter_async_context(apiserver.running(tools, place))
                kinds = await cluster.define(CRDS)
                written = await asyncio.to_thread(schemas.write, await cluster.schema(), CRDS, place / "schemas")
                say(f"ready, {kinds} kinds of custom resources defined, {written} schemas")
            if cluster is not None:
                await _check_rendering(report, tools, one, cluster, place / "schemas")


async def _check_rendering(
    report: Report, tools: Tools, rendered: Rendered, cluster: apiserver.Cluster, known: Path
) -> None:  # fmt: skip
    name = rendered.name
    with report.check(f"kubeconform: {name}") as say:
        say(f"{await schemas.check(tools, known, rendered.documents)} resources")
    with report.check(f"dry run: {name}") as say:
        say(await dryrun.check(cluster, rendered))
    with report.check(f"dry run: {name}: what is wrong is refused") as say:
        for broken in dryrun.broken(rendered):
            await dryrun.refused(cluster, broken)
            if broken.schema:
                await schemas.refused(tools, known, broken.document, broken.because)
            say(broken.fault)


async def check_containers(report: Report, tools: Tools, rendered: list[Rendered], folder: Path) -> None:
    """The images, and the largest overlay's pods as containers."""
    with report.check("podman and buildah"):
        if tools.missing:
            raise CheckError(tools.missing)
    if tools.missing:
        return
    place = tools.folder / "containers"
    # One store, one user: another run would end this one's containers.
    with locked(place.with_suffix(".lock")):
        podman = Podman(place)
        await podman.begin()
        try:
            await _images_and_workers(report, podman, tools, rendered, folder)
        finally:
            await podman.end(CALLYARD.tag, ASTERISK.tag)


async def _images_and_workers(
    report: Report, podman: Podman, tools: Tools, rendered: list[Rendered], folder: Path
) -> None:  # fmt: skip
    failed = report.failed
    for one in (CALLYARD, ASTERISK):
        with report.check(f"image: {one.tag}") as say:
            say(await image.build(podman, REPOSITORY, tools.folder, one))
            say(await image.look(podman, one))
    if report.failed > failed:
        return
    with report.check("image: start") as say:
        say(await image.start(podman, CALLYARD))
    largest = next((one for one in rendered if one.name == LARGEST), None)
    if largest is not None:
        await workers.check(report, podman, CALLYARD, largest, folder / "workers")


if __name__ == "__main__":
    typer.run(command)
