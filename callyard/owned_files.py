"""Files that Callyard renders into a directory: all of them or none, each one whole, never over what isn't ours.

A rendered file begins with comment lines: what rendered it, and the digest of what follows. A file that lacks them, or
that was changed since, belongs to somebody else and is left alone.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import tempfile
from collections.abc import Mapping
from contextlib import suppress
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
SEMICOLON = Comment("; ")
DIGEST = "callyard-digest: "


class ForeignFileError(CommandError):
    """Files are in the way that were not rendered, or were changed by hand since."""


def sealed(body: str, comment: Comment, command: str) -> str:
    """A file's content with the lines that say what rendered it, and from what."""
    return (
        comment.line(f"{_rendered_by(command)}Change Callyard's settings instead: once edited it isn't overwritten.")
        + comment.line(f"{DIGEST}{_digest(body)}")
        + body
    )


def is_ours(content: str, comment: Comment, command: str) -> bool:
    """Whether this content was rendered by this command, of whatever version, and not changed since."""
    head, _, rest = content.partition(f"{comment.begin}{DIGEST}")
    digest, _, body = rest.partition(f"{comment.end}\n")
    # What the lines say beyond that was worded differently before.
    return (
        head.startswith(f"{comment.begin}{_rendered_by(command)}")
        and all(line.startswith(comment.begin) for line in head.splitlines())
        and digest == _digest(body)
    )


def _rendered_by(command: str) -> str:
    return f"Rendered by '{command}'. "


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode(errors="surrogateescape")).hexdigest()


@dataclass(frozen=True)
class Rendered:
    """A set of files of one command: name and whole content (see `sealed`), and how each is commented.

    ``group``: they belong to the directory's group, where this process may give them to it. ``secret``: what it matches
    in a diff's line, but for its first group, isn't shown.
    """

    command: str
    files: Mapping[str, str]
    comments: Mapping[str, Comment]
    mode: int = 0o644
    group: bool = False
    secret: re.Pattern[str] | None = None

    def differences(self, directory: Path) -> str:
        """What writing would change, as a unified diff without secrets; empty where nothing."""
        present = self.present(directory)
        parts: list[str] = []
        for name, content in sorted(self.files.items()):
            before = present.get(name, "").splitlines(keepends=True)
            parts.extend(difflib.unified_diff(before, content.splitlines(keepends=True), f"a/{name}", f"b/{name}"))
        text = "".join(parts).encode(errors="surrogateescape").decode(errors="replace")
        # What is printed ends up in logs.
        return text if self.secret is None else self.secret.sub(r"\1 (not shown)", text)

    def write(self, directory: Path) -> list[str]:
        """Write what differs; returns the names of the files written.

        Raises `ForeignFileError`, before anything is written, where a file is in the way that isn't ours, and
        `CommandError` for what can't be read or written.
        """
        present = self.present(directory)
        foreign = [
            name
            for name, content in sorted(present.items())
            if content != self.files[name] and not self.is_ours(name, content)
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
                _write_whole(directory / name, self.files[name], self.mode, group=self.group)
        except OSError as error:
            raise CommandError(f"{error.filename or directory} cannot be written: {error.strerror}") from None
        return changed

    def is_ours(self, name: str, content: str) -> bool:
        """Whether this content of the file of that name was rendered, and not changed since."""
        return is_ours(content, self.comments[name], self.command)

    def present(self, directory: Path) -> dict[str, str]:
        """Which of the files are there, and their content. Raises `CommandError` where one cannot be read."""
        found = {}
        for name in self.files:
            try:
                found[name] = (directory / name).read_bytes().decode(errors="surrogateescape")
            except FileNotFoundError:
                continue
            except OSError as error:
                raise CommandError(f"{directory / name} cannot be read: {error.strerror}") from None
        return found


def _write_whole(path: Path, content: str, mode: int, *, group: bool) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), mode)
            if group:
                # Only root or a member may give a file to a group.
                with suppress(PermissionError):
                    os.fchown(file.fileno(), -1, path.parent.stat().st_gid)
            file.write(content.encode())
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
