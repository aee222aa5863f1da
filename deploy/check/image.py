"""The images: built as their Dockerfiles say, upon stand-ins for the bases that a registry would give, and looked at.

A stand-in is Debian's minimal system of the same release, made by mmdebstrap from the archive, without the
documentation, as the official slim images are. So what is measured is near to the real size, but not the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path

from callyard.cache import locked
from callyard.parts.prepare import debian_mirror
from deploy.check import contents
from deploy.check.commands import must
from deploy.check.containers import Podman
from deploy.check.report import CheckError

LARGEST_MB = 400
USER = 10001
"""By number: Kubernetes (runAsNonRoot) can't tell who a name is."""
CONFINED = ("--read-only", "--read-only-tmpfs=false", "--cap-drop=all", "--security-opt=no-new-privileges")
"""As confined as the manifests' containers."""
OWN_AUTHORITIES = Path("/usr/local/share/ca-certificates")
_HOOKS = (
    # As the official images have it: nothing is kept of what apt fetched.
    'echo \'Dir::Cache::pkgcache ""; Dir::Cache::srcpkgcache "";'
    ' DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb || true"; };\' > "$1/etc/apt/apt.conf.d/docker-clean"',
    'rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*.bin "$1"/var/cache/apt/archives/*.deb',
)
_SLIM = ("path-exclude=/usr/share/doc/*", "path-include=/usr/share/doc/*/copyright", "path-exclude=/usr/share/man/*",
         "path-exclude=/usr/share/locale/*", "path-exclude=/usr/share/info/*")  # fmt: skip


@dataclass(frozen=True)
class Image:
    """An image of ours: the name that the manifests use, its Dockerfile, and the suite of its base."""

    tag: str
    dockerfile: str
    suite: str
    arguments: tuple[tuple[str, str], ...] = ()


async def build(podman: Podman, repository: Path, folder: Path, image: Image) -> str:
    """Build it; returns its size, and the part of it that isn't the base."""
    base = await _base(podman, folder, image.suite)
    mounts = (
        {Path("/etc/pip.conf"): "/etc/pip.conf"} if Path("/etc/pip.conf").is_file() and image.suite == "trixie" else {}
    )
    dockerfile = repository / "deploy" / "image" / image.dockerfile
    await podman.build(dockerfile, repository, image.tag, {"BASE": base, **dict(image.arguments)}, mounts)
    size = int((await podman.inspect(image.tag, "image"))["Size"]) / 1e6
    below = int((await podman.inspect(base, "image"))["Size"]) / 1e6
    if size > LARGEST_MB:
        raise CheckError(f"{image.tag} has {size:.0f} MB, more than {LARGEST_MB}")
    return f"{size:.0f} MB, {below:.0f} of them the base"


async def _base(podman: Podman, folder: Path, suite: str) -> str:
    """The stand-in for Debian's image of a suite; made where it is not in the cache."""
    own = sorted(OWN_AUTHORITIES.glob("*.crt")) if OWN_AUTHORITIES.is_dir() else []
    content = [suite, _HOOKS, _SLIM, [path.read_text(encoding="utf-8") for path in own]]
    recipe = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:10]
    name, tar = f"localhost/callyard-check/debian:{suite}-{recipe}", folder / f"debian-{suite}-{recipe}.tar"
    if (await podman.run("image", "exists", name)).status == 0:
        return name
    with locked(tar.with_suffix(".lock")):
        if not tar.is_file():
            partial = tar.with_suffix(".new.tar")
            hooks = [f"--customize-hook={hook}" for hook in _HOOKS]
            if own:
                # A machine whose network has an authority of its own: pip asks the system's list, which has it so.
                hooks.append(
                    f'--customize-hook=mkdir -p "$1{OWN_AUTHORITIES}"; cp {OWN_AUTHORITIES}/*.crt "$1{OWN_AUTHORITIES}"'
                )
            options = ['Acquire::Check-Valid-Until "false"', 'APT::Install-Recommends "false"']
            await must(
                "mmdebstrap", "--mode=root", "--variant=minbase", *(f"--aptopt={option}" for option in options),
                *(f"--dpkgopt={option}" for option in _SLIM), *hooks, suite, partial, debian_mirror(), timeout=1200,
            )  # fmt: skip
            partial.rename(tar)
    await podman.must("import", tar, name, timeout=300)
    return name


async def look(podman: Podman, image: Image) -> str:
    """Whether it is what docs/security.md promises. Raises `CheckError` with all that it is not."""
    config = (await podman.inspect(image.tag, "image"))["Config"]
    wrong = []
    if config.get("User") != f"{USER}:{USER}":
        wrong.append(f"it runs as {config.get('User') or 'root'}, not as {USER}:{USER}")
    wrong += [
        f"its environment holds {name}"
        for name in config.get("Env", ())
        if re.search("SECRET|PASSWORD|TOKEN|KEY", name)
    ]
    mounted = Path(await podman.must("image", "mount", image.tag))
    try:
        wrong += await asyncio.to_thread(contents.findings, mounted)
        compiled = len(contents.modules(mounted))
    finally:
        await podman.must("image", "unmount", image.tag)
    if wrong:
        raise CheckError(f"{image.tag}:\n" + "\n".join(wrong))
    return f"runs as {config['User']}, no pip, compiler, key or work tree in it" + (
        f"; all {compiled} modules compiled" if compiled else ""
    )


async def start(podman: Podman, image: Image, times: int = 3) -> str:
    """How long the command takes in a container that may do nothing: no capability, no place to write, no network."""
    took = []
    for _ in range(times):
        began = time.monotonic()
        printed = await podman.must("run", "--rm", *CONFINED, "--network=none", image.tag, "--version")
        took.append(time.monotonic() - began)
        if not printed.startswith("callyard "):
            raise CheckError(f"callyard --version says {printed!r}")
    return f"callyard --version in {min(took):.2f} to {max(took):.2f} s, podman's own time in it"
