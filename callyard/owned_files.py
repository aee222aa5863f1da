"""Files that Callyard renders into a directory: all of them or none, each one whole, never over what isn't ours.

A rendered file begins with two comment lines: who wrote it, and the digest of what follows. A file that lacks them, or
that was changed since, belongs to somebody else and is left alone.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from callyard.errors import CommandError


@dataclass(frozen=True)
class Comment:
    """How a comment line of a kind of file begins and ends."""

    begin: str
    end: str = ""

    def line(self, text: str) -> str:
        """A comment as a whole line."""
        return f"{self.begin}{text}{self.end}\n"


XML = Comment("<!-- ", " -->")
HASH = Comment("# ")


class ForeignFileError(CommandError):
    """Files are in the way that were not rendered, or were changed by hand since."""


def sealed(body: str, comment: Comment, command: str) -> str:
    """A file's content with the lines that say what rendered it, and from what."""
    digest = hashlib.sha256(body.encode()).hexdigest()
    return (
        comment.line(f"Rendered by '{command}'. Change Callyard's settings instead: once edited it isn't overwritten.")
        + comment.line(f"callyard-digest: {digest}")
        + body
    )


def is_ours(content: str, comment: Comment, command: str) -> bool:
    """Whether this content was rendered by this command, and not changed since."""
    parts = content.split("\n", 2)
    return len(parts) == 3 and content == sealed(parts[2], comment, command)


@dataclass(frozen=True)
class Rendered:
    """A set of files of one command: name and whole content (see `sealed`), and how each is commented."""

    command: str
    files: Mapping[str, str]
    comments: Mapping[str, Comment]
    mode: int = 0o644

    def differences(self, directory: Path) -> str:
        """What writing would change, as a unified diff; empty where nothing."""
        present = self._present(directory)
        parts: list[str] = []
        for name, content in sorted(self.files.items()):
            before = present.get(name, "").splitlines(keepends=True)
            parts.extend(difflib.unified_diff(before, content.splitlines(keepends=True), f"a/{name}", f"b/{name}"))
        return "".join(parts)

    def write(self, directory: Path) -> list[str]:
        """Write what differs; returns the names of the files written.

        Raises `ForeignFileError`, before anything is written, where a file is in the way that isn't ours, and
        `CommandError` for what can't be read or written.
        """
        present = self._present(directory)
        foreign = [
            name
            for name, content in sorted(present.items())
            if content != self.files[name] and not is_ours(content, self.comments[name], self.command)
        ]
        if foreign:
            raise ForeignFileError(
                f"these files in {directory} were not rendered by callyard, or were edited since: {', '.join(foreign)}."
                " Nothing was written. Compare with --diff, move them away, then render again"
            )
        changed = [name for name, content in sorted(self.files.items()) if present.get(name) != content]
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for name in changed:
                _write_whole(directory / name, self.files[name], self.mode)
        except OSError as error:
            raise CommandError(f"{error.filename or directory} cannot be written: {error.strerror}") from None
        return changed

    def _present(self, directory: Path) -> dict[str, str]:
        found = {}
        for name in self.files:
            try:
                found[name] = (directory / name).read_bytes().decode(errors="surrogateescape")
            except FileNotFoundError:
                continue
            except OSError as error:
                raise CommandError(f"{directory / name} cannot be read: {error.strerror}") from None
        return found


def _write_whole(path: Path, content: str, mode: int) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content.encode())
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
