"""Runs inside an image, by its Python: says as JSON what is there that should not be. Needs the standard library only."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

TOOLS = {"pip", "pip3", "gcc", "cc", "make", "git", "curl", "wget", "setuptools", "ensurepip"}
OURS = Path("/opt/callyard")
PRIVATE = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----")
SKIPPED = {"/proc", "/sys", "/dev"}
LARGEST = 1 << 20


def files() -> Iterator[Path]:
    for directory, folders, names in os.walk("/"):
        folders[:] = [name for name in folders if str(Path(directory, name)) not in SKIPPED]
        yield from (Path(directory, name) for name in [*names, *folders])


def compiled(source: Path) -> bool:
    """Whether Python takes the compiled code beside it: it is there, and made from this source or never asks."""
    path = Path(importlib.util.cache_from_source(str(source)))
    if not path.is_file():
        return False
    head = path.read_bytes()[:16]
    if int.from_bytes(head[4:8], "little") & 0b1:
        return True
    return int.from_bytes(head[8:12], "little") == int(source.stat().st_mtime) & 0xFFFFFFFF


def main() -> None:
    wrong, modules, slow = [], 0, []
    for path in files():
        if path.name in TOOLS and ("site-packages" in path.parts or path.parent.name in {"bin", "sbin"}):
            wrong.append(f"{path} is there")
        if path.name in {".git", ".venv", "tests", "pyproject.toml"} and OURS in path.parents and path.parent.name == "callyard":
            wrong.append(f"{path} came along from the work tree")
        if path.is_file() and not path.is_symlink() and path.stat().st_size < LARGEST:
            content = path.read_bytes()
            if PRIVATE.search(content) and path.suffix not in {".py", ".pyc"}:
                wrong.append(f"{path} holds a private key")
        if path.suffix == ".py" and OURS in path.parents and "site-packages" in path.parts:
            modules += 1
            slow += [] if compiled(path) else [path]
    if slow:
        wrong.append(f"{len(slow)} modules aren't compiled, and could not be at run time: {slow[0]}")
    json.dump({"wrong": wrong, "compiled": modules}, sys.stdout)


main()
