"""Finds Asterisk, SIPp and (for tests) Redis on this machine, or prepares them once into the cache.

``python -m callyard.parts.prepare`` does it.

What the machine has (on PATH, Asterisk from 20.10 on) is used. What it lacks comes from Debian, as a directory tree in
the cache, in which it is run (see `confine`); nothing is installed into the system but ``mmdebstrap``, and that only
by root. Several processes may prepare at the same time: one works, the others wait for it. An unfinished tree never
gets its final name.

Asterisk is in no stable Debian since 12; the tree is Debian's unstable (``sid``).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from callyard.cache import cache_folder, locked
from callyard.errors import CommandError

SUITE = "sid"
PACKAGES = (
    "asterisk", "asterisk-core-sounds-en-gsm", "asterisk-moh-opsound-wav", "espeak-ng", "redis-server", "sip-tester",
    "sox",
)  # fmt: skip
DEFAULT_MIRROR = "http://deb.debian.org/debian"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
LEAST_ASTERISK = (20, 10)
"""The oldest Asterisk whose manager.conf has the event filters that are rendered."""
STAMP = "callyard-prepared.json"
SYSTEM_PROGRAMS = ":/usr/sbin:/usr/local/sbin"
"""Where Debian has Asterisk; on no ordinary user's PATH."""
INSTANCE = "/callyard"
"""Where, inside the tree, an instance's own directory is mounted."""


class PartMissingError(CommandError):
    """A real part is neither on this machine nor in the cache, or cannot be prepared; the text says what to do."""


@dataclass(frozen=True)
class Parts:
    """Where the real parts are. A part is on this machine, or inside ``root``."""

    asterisk: Path
    asterisk_root: Path | None
    sipp: Path
    sipp_root: Path | None
    version: str
    """Asterisk's version, as ``asterisk -V`` says it."""


def _tree() -> Path:
    # What it is made of is part of its name: another recipe never finds an older tree.
    recipe = hashlib.sha256(json.dumps([SUITE, PACKAGES, INSTANCE]).encode()).hexdigest()[:10]
    return cache_folder().absolute() / f"debian-{SUITE}-{recipe}"


def _run(argv: Sequence[str | Path], **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in argv], text=True, check=False, **more)  # noqa: S603 - never a shell


def _output(*argv: str | Path) -> str:
    """What a short command prints; empty where it fails or isn't there (callers then try something else)."""
    if shutil.which(argv[0]) is None:
        return ""
    done = _run(argv, capture_output=True, timeout=60)
    return done.stdout.strip() if done.returncode == 0 else ""


def _asterisk_here() -> tuple[Path, str] | None:
    path = shutil.which("asterisk", path=os.environ.get("PATH", "") + SYSTEM_PROGRAMS)
    version = _output(path, "-V") if path else ""
    numbers = re.search(r"(\d+)\.(\d+)", version)
    if path is None or numbers is None or (int(numbers[1]), int(numbers[2])) < LEAST_ASTERISK:
        return None
    return Path(path), version


def find() -> Parts | None:
    """The parts, where all are on this machine or were prepared; else None. Starts nothing, changes nothing."""
    here, sipp, tree = _asterisk_here(), shutil.which("sipp"), _tree()
    if here and sipp:
        return Parts(here[0], None, Path(sipp), None, here[1])
    if not (tree / STAMP).is_file():
        return None
    asterisk, version = here or (Path("/usr/sbin/asterisk"), json.loads((tree / STAMP).read_text())["version"])
    return Parts(
        asterisk, None if here else tree, Path(sipp or "/usr/bin/sipp"), None if sipp else tree, version
    )  # fmt: skip


def redis_server() -> tuple[Path, Path | None]:
    """Redis, and the tree that it is in where it isn't this machine's; for tests. Raises `PartMissingError`."""
    here, tree = shutil.which("redis-server", path=os.environ.get("PATH", "") + SYSTEM_PROGRAMS), _tree()
    if here:
        return Path(here), None
    if not (tree / STAMP).is_file():
        raise PartMissingError("redis-server is neither on this machine nor prepared: install it, or run 'make setup'")
    return Path("/usr/bin/redis-server"), tree


def found() -> Parts:
    """The parts, as `find`; raises `PartMissingError` where they have to be prepared first."""
    parts = find()
    if parts is None:
        raise PartMissingError(
            "Asterisk and SIPp are neither on this machine nor prepared: run 'make setup'"
            " (python -m callyard.parts.prepare), or install Asterisk 20.10 or newer and SIPp (Debian: sip-tester)"
        )
    return parts


def prepare() -> Parts:
    """Find the parts, or prepare what is missing. Raises `PartMissingError` with all that stands in the way."""
    parts = find()
    if parts is not None:
        return parts
    tree = _tree()
    with locked(tree.with_suffix(".lock")):
        if not (tree / STAMP).is_file():
            _build(tree)
    return found()


def _build(tree: Path) -> None:
    _require()
    new = tree.with_suffix(".new")
    _remove(new)
    new.mkdir()
    mirror, proxy = debian_mirror(), _output("apt-config", "shell", "PROXY", "Acquire::http::Proxy")
    options = ['Acquire::Check-Valid-Until "false"', 'APT::Install-Recommends "false"']
    if proxy:
        options.append(f'Acquire::http::Proxy "{shlex.split(proxy)[0].removeprefix("PROXY=")}"')
    bootstrap = [
        "mmdebstrap", "--mode=root" if os.geteuid() == 0 else "--mode=unshare", "--variant=apt",
        *(f"--aptopt={option}" for option in options), f"--include={','.join(PACKAGES)}", SUITE, "-", mirror,
    ]  # fmt: skip
    log = tree.with_suffix(".log")
    # Through a tar stream, so that without root, too, the files are the user's own and a plain rm removes them.
    unpack = ["tar", "-x", "-C", str(new), "--no-same-owner", "--exclude=./dev/*", "--exclude=./proc/*"]
    with (
        log.open("wb") as errors,
        subprocess.Popen(bootstrap, stdout=subprocess.PIPE, stderr=errors) as source,  # noqa: S603 - never a shell
    ):
        unpacked = _run(unpack, stdin=source.stdout, stderr=errors)
    if source.returncode != 0 or unpacked.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-12:])
        raise PartMissingError(f"mmdebstrap could not prepare Asterisk from {mirror} (all of it in {log}):\n{tail}")
    for mount_point in ("dev", "proc", INSTANCE[1:], "etc/asterisk"):
        (new / mount_point).mkdir(exist_ok=True)
    (new / "etc" / "hosts").touch()
    versions = (new / "var/lib/dpkg/status").read_text(errors="replace")
    version = re.search(r"^Package: asterisk\n(?:.+\n)*?Version: (?:\d+:)?(\S+)", versions, re.MULTILINE)
    if version is None:
        raise PartMissingError(f"what mmdebstrap made has no Asterisk in it: see {log}")
    (new / STAMP).write_text(json.dumps({"version": f"Asterisk {version[1]}", "mirror": mirror}))
    new.rename(tree)


def _remove(tree: Path) -> None:
    if not tree.exists():
        return
    # An interrupted run may have left directories without write permission.
    for directory, _, _ in os.walk(tree):
        Path(directory).chmod(0o755)
    shutil.rmtree(tree)


def debian_mirror() -> str:
    """The Debian mirror that this machine uses itself, or Debian's own."""
    listed = _output("apt-get", "indextargets", "--no-release-info", "--format", "$(REPO_URI)")
    own = [uri.rstrip("/") for uri in listed.splitlines() if re.search(r"^https?://.*/debian/?$", uri)]
    return own[0] if own else DEFAULT_MIRROR


def _require() -> None:
    """See to it that mmdebstrap can run; root installs it where apt is there."""
    root = os.geteuid() == 0
    if root and shutil.which("apt-get") and not (shutil.which("mmdebstrap") and KEYRING.is_file()):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        wanted = ["mmdebstrap", "debian-archive-keyring"]
        for argv in (["update"], ["install", "-y", "--no-install-recommends", *wanted]):
            done = _run(["apt-get", "-q", *argv], env=environment, capture_output=True)
        if done.returncode != 0:
            raise PartMissingError(f"apt-get could not install {' and '.join(wanted)}:\n{done.stderr.strip()[-1500:]}")
    missing = _missing(root)
    if missing:
        raise PartMissingError(
            "Asterisk and SIPp aren't on this machine, and cannot be prepared here, because:\n  "
            + "\n  ".join(missing)
            + "\nInstead, Asterisk 20.10 or newer and SIPp (Debian: sip-tester) on PATH will do."
        )


def _missing(root: bool) -> list[str]:
    missing = []
    if not shutil.which("mmdebstrap"):
        missing.append("mmdebstrap is missing: sudo apt-get install mmdebstrap")
    if not KEYRING.is_file():
        missing.append(f"{KEYRING} is missing: sudo apt-get install debian-archive-keyring")
    if root:
        return missing
    if not shutil.which("newuidmap"):
        missing.append("newuidmap is missing (user namespaces without root): sudo apt-get install uidmap")
    user = _output("id", "-un")
    mine = re.compile(rf"^({re.escape(user)}|{os.getuid()}):", re.MULTILINE)
    if not all(path.is_file() and mine.search(path.read_text()) for path in (Path("/etc/subuid"), Path("/etc/subgid"))):
        ids = "100000-165535"
        missing.append(f"{user} has no subordinate ids: sudo usermod --add-subuids {ids} --add-subgids {ids} {user}")
    if not _output("unshare", "--user", "--mount", "echo", "possible"):
        missing.append(
            "the kernel gives users no namespaces: sudo sysctl kernel.unprivileged_userns_clone=1"
            " (Ubuntu: kernel.apparmor_restrict_unprivileged_userns=0)"
        )
    return missing


def main() -> int:
    """Prepare the parts and say where they are; exit status 1, with what is missing, where that isn't possible."""
    began = time.monotonic()
    if find() is None:
        print("preparing Asterisk and SIPp (a minute or two, once) …", file=sys.stderr)  # noqa: T201
    try:
        parts = prepare()
    except PartMissingError as error:
        print(f"callyard.parts.prepare: {error}", file=sys.stderr)  # noqa: T201 - a command's message
        return 1
    place = "on this machine" if parts.asterisk_root is None else f"in {parts.asterisk_root}"
    print(f"{parts.version} {place}, ready in {time.monotonic() - began:.1f} s", file=sys.stderr)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
