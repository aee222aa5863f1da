"""Writes the rendered set into a directory: all files or none of them, each one atomically, never over foreign ones."""

from __future__ import annotations

import difflib
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from ast_config.render import is_ours
from callyard.errors import CommandError

MODE = 0o640
"""manager.conf holds a secret; the directory's group (Asterisk's) may read."""


class ForeignFileError(CommandError):
    """Files are in the way that were not rendered, or were changed by hand since."""


def present(directory: Path, names: Iterable[str]) -> dict[str, str]:
    """Which of these files are there, and their content. Raises `CommandError` where one cannot be read."""
    found = {}
    for name in names:
        if not (directory / name).exists():
            continue
        try:
            found[name] = (directory / name).read_text(encoding="utf-8", errors="surrogateescape")
        except OSError as error:
            raise CommandError(f"{directory / name} cannot be read: {error.strerror}") from None
    return found


_SECRET = re.compile(r"^([-+ ]\s*(?:secret|password)\s*=).*$", re.MULTILINE)


def differences(directory: Path, files: Mapping[str, str]) -> str:
    """What writing would change, as a unified diff without secrets; empty where nothing."""
    there = present(directory, files)
    parts: list[str] = []
    for name, content in sorted(files.items()):
        before = there.get(name, "").splitlines(keepends=True)
        parts.extend(difflib.unified_diff(before, content.splitlines(keepends=True), f"a/{name}", f"b/{name}"))
    # What is printed ends up in logs.
    return _SECRET.sub(r"\1 (not shown)", "".join(parts))


def write(directory: Path, files: Mapping[str, str]) -> list[str]:
    """Write what differs; returns the names of the files written.

    Raises `ForeignFileError`, before anything is written, where a file is in the way that isn't ours.
    """
    there = present(directory, files)
    foreign = [name for name, content in there.items() if not is_ours(content) and content != files[name]]
    if foreign:
        raise ForeignFileError(
            f"these files in {directory} were not rendered by callyard, or were edited since: {', '.join(foreign)}."
            " Nothing was written. Compare with --diff, move them away, then render again"
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        changed = [name for name, content in sorted(files.items()) if there.get(name) != content]
        for name in changed:
            _write_one(directory / name, files[name])
    except OSError as error:
        raise CommandError(f"{error.filename or directory} cannot be written: {error.strerror}") from None
    return changed


def _write_one(path: Path, content: str) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with ExitStack() as undo:
        undo.callback(Path(temporary).unlink, missing_ok=True)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), MODE)
            # Asterisk reads as a user of its own, whose group the directory has; only root or a member may give it.
            with suppress(PermissionError):
                os.fchown(file.fileno(), -1, path.parent.stat().st_gid)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
        undo.pop_all()
