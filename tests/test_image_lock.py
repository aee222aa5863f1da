"""What the image installs is locked: all that pyproject.toml asks for, in versions that it allows, with hashes."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
IMAGE = ROOT / "deploy" / "image"
LOCK = runpy.run_path(str(ROOT / "scripts" / "image-lock"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PINNED = re.compile(r"^([\w.-]+)==(\S+)(?: ; .+)? \\$")


def locked(name: str) -> dict[str, str]:
    """The versions of a lock. Each package in it is pinned, and followed by its hashes."""
    lines = (IMAGE / name).read_text(encoding="utf-8").splitlines()
    found = {}
    for number, line in enumerate(lines):
        if line.startswith((" ", "#")):
            continue
        pinned = PINNED.match(line)
        assert pinned, f"{name}: {line} is not pinned"
        assert re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}(?: \\)?", lines[number + 1]), f"{line}: no hash follows"
        found[canonicalize_name(pinned[1])] = pinned[2]
    return found


def wanted() -> list[Requirement]:
    """What the image's workers need, by the Python that it has."""
    project = PROJECT["project"]
    texts = [*project["dependencies"]]
    for extra in LOCK["EXTRAS"]:
        texts += project["optional-dependencies"][extra]
    environment: Any = {**default_environment(), "python_version": LOCK["PYTHON"], "sys_platform": "linux"}
    needed = [Requirement(text) for text in texts]
    return [one for one in needed if one.marker is None or one.marker.evaluate(environment)]


@pytest.mark.parametrize("requirement", wanted(), ids=lambda requirement: requirement.name)
def test_the_lock_has_what_the_package_asks_for(requirement: Requirement) -> None:
    versions = locked("requirements.txt")
    name = canonicalize_name(requirement.name)
    assert name in versions, "run 'make image-lock'"
    assert requirement.specifier.contains(versions[name], prereleases=True), "run 'make image-lock'"


def test_the_lock_has_nothing_of_tests_or_of_the_lock_itself() -> None:
    names = set(locked("requirements.txt"))
    extras = PROJECT["project"]["optional-dependencies"]
    others = {canonicalize_name(Requirement(text).name) for text in [*extras["dev"], *extras["embedded"]]}
    assert not names & others
    assert not names & {"pip", "setuptools", "wheel", "callyard"}


def test_what_builds_the_package_is_locked() -> None:
    versions = locked("build-requirements.txt")
    assert set(versions) == {"pip", "setuptools"}
    [needed] = [Requirement(text) for text in PROJECT["build-system"]["requires"]]
    assert needed.specifier.contains(versions[needed.name])


def test_the_image_is_of_the_python_that_the_lock_is_for() -> None:
    # Debian 13 has Python 3.13.
    dockerfile = (IMAGE / "Dockerfile").read_text(encoding="utf-8")
    assert re.search(r"^ARG BASE=\S+/debian:trixie-slim@sha256:[0-9a-f]{64}$", dockerfile, re.MULTILINE)
    assert LOCK["PYTHON"] == "3.13"
