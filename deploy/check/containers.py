"""Podman and buildah with a store, settings and state of their own: the machine's containers are never touched.

The store is in the cache, so that the base and the layers below Callyard's own are made once. It needs root, runc (crun
does not start where cgroups are of the first version only), and limits that the machine can give (podman's defaults
are above what a container in a container may ask for).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.check.commands import Done, must, run

_SETTINGS = """\
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=32768:32768"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
tmp_dir = "{state}/libpod"
"""
STORE_BYTES = 4 << 30
"""A store that has grown beyond this is begun anew."""


class Podman:
    """Runs podman and buildah on the store in a folder. Podman remembers where its state is, so that is there, too."""

    def __init__(self, folder: Path) -> None:
        self.store, state = folder / "store", folder / "state"
        state.mkdir(parents=True, exist_ok=True)
        storage, settings = folder / "storage.conf", folder / "containers.conf"
        storage.write_text(f'[storage]\ndriver = "overlay"\ngraphroot = "{self.store}"\nrunroot = "{state / "run"}"\n')
        settings.write_text(_SETTINGS.replace("{state}", str(state)))
        self._environment = {"CONTAINERS_STORAGE_CONF": str(storage), "CONTAINERS_CONF": str(settings)}

    async def must(self, *argv: str | Path, given: str | None = None, timeout: float = 120) -> str:
        """Run podman; returns what it prints. Raises `CheckError` in its words."""
        return (await must("podman", *argv, given=given, environment=self._environment, timeout=timeout)).out.strip()

    async def run(self, *argv: str | Path, timeout: float = 120) -> Done:
        """Run podman, whatever comes of it."""
        return await run("podman", *argv, environment=self._environment, timeout=timeout)

    async def build(
        self, file: Path, context: Path, tag: str, arguments: Mapping[str, str], mounts: Mapping[Path, str]
    ) -> None:
        """Build an image of a Dockerfile, by buildah, without a container runtime. Raises `CheckError`."""
        given = [f"--build-arg={name}={value}" for name, value in arguments.items()]
        given += [f"--volume={source}:{target}:ro" for source, target in mounts.items()]
        await must(
            "buildah", "bud", "--isolation=chroot", "--layers", "--format=oci", *given, "-f", file, "-t", tag, context,
            environment=self._environment, timeout=1800,
        )  # fmt: skip

    async def inspect(self, name: str, kind: str = "container") -> dict[str, Any]:
        """What podman knows of a container, or of an image."""
        found: list[dict[str, Any]] = json.loads(await self.must("inspect", "--type", kind, name))
        return found[0]

    async def begin(self) -> None:
        """Remove what a killed run left, and a store that has become too large."""
        await self._clear()
        size = (
            int((await must("du", "--summarize", "--bytes", self.store)).out.split()[0]) if self.store.is_dir() else 0
        )
        if size > STORE_BYTES:
            await self.run("image", "rm", "--all", "--force", timeout=300)
            shutil.rmtree(self.store)

    async def end(self, *tags: str) -> None:
        """Remove all containers, pods, and these names; the layers stay for the next build."""
        await self._clear()
        for tag in tags:
            await self.run("untag", tag)

    async def _clear(self) -> None:
        await self.must("pod", "rm", "--all", "--force", "--time=5", timeout=300)
        await self.must("rm", "--all", "--force", "--time=5", timeout=300)
