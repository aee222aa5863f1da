"""What an image holds that it should not: looked at from outside, as files, so that nothing in it takes part."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

TOOLS = {"pip", "pip3", "setuptools", "ensurepip", "gcc", "cc", "make", "git", "curl", "wget"}
WORK_TREE = {".git", ".venv", ".cache", "tests", "bench", "pyproject.toml", "Makefile"}
PLACES = ("opt", "build", "callyard", "srv", "home", "root", "tmp")
"""Where something of the work tree could have come to lie."""
PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+(?:[\w-]+: .*\s+)*[A-Za-z0-9+/]{40}")
LARGEST = 1 << 20
"""Keys are smaller; what is larger are programs and libraries."""


def findings(root: Path) -> list[str]:
    """Each thing that should not be there."""
    found = []
    for path in _files(root):
        name = f"/{path.relative_to(root)}"
        if path.name in TOOLS and path.parent.name in {"bin", "sbin", "site-packages", "dist-packages"}:
            found.append(f"{name}: whoever breaks in has it at hand")
        if path.name in WORK_TREE and path.relative_to(root).parts[0] in PLACES and "site-packages" not in path.parts:
            found.append(f"{name} came along from the work tree")
        if (
            path.is_file()
            and not path.is_symlink()
            and path.stat().st_size < LARGEST
            and path.suffix not in {".py", ".pyc"}
        ):
            found += [f"{name} holds a private key"] if PRIVATE_KEY.search(path.read_bytes()) else []
    slow = [source for source in modules(root) if not compiled(source)]
    if slow:
        first = slow[0].relative_to(root)
        found.append(f"{len(slow)} modules are not compiled, and with a read-only root never will be: /{first}")
    return found


def modules(root: Path) -> list[Path]:
    """The Python modules of Callyard and of what it needs."""
    return sorted(root.glob("opt/callyard/lib/python*/site-packages/**/*.py"))


def compiled(source: Path) -> bool:
    """Whether Python takes compiled code for this source, whatever time stamps a copy or a registry leaves."""
    for path in (source.parent / "__pycache__").glob(f"{source.stem}.cpython-*.pyc"):
        # PEP 552: the first bit says that it is checked by a hash, the second that the source is compared at all.
        if int.from_bytes(path.read_bytes()[4:8], "little") == 0b01:
            return True
    return False


def _files(root: Path) -> Iterator[Path]:
    for directory, folders, names in os.walk(root):
        yield from (Path(directory, name) for name in [*names, *folders])
