"""Callyard's systemd units, read as systemd does; and run as far as that goes without systemd."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from callyard.processes import Child

FOLDER = Path(__file__).parent.parent.parent / "deploy" / "systemd"
PROGRAM = "/opt/callyard/bin/callyard"


class Unit:
    """A service's unit. ``instance``: what stands behind the @ of a template's name."""

    def __init__(self, name: str, instance: str = "") -> None:
        self.path = FOLDER / name
        self.name = name.replace("@.", f"@{instance}.")
        self.instance = instance
        lines = [line.partition("=") for line in self.path.read_text().splitlines() if re.match(r"[A-Z]\w*=", line)]
        self.settings = [(name, value) for name, _, value in lines]

    def all(self, name: str) -> list[str]:
        """Each value of a setting that may be given several times."""
        return [value for found, value in self.settings if found == name]

    def one(self, name: str) -> str:
        """The value of a setting that is given once."""
        [value] = self.all(name)
        return value

    @property
    def environment(self) -> dict[str, str]:
        return dict(value.split("=", 1) for value in self.all("Environment"))

    @property
    def credentials(self) -> dict[str, str]:
        return dict(value.split(":", 1) for value in self.all("LoadCredential"))

    def example(self) -> dict[str, str]:
        """What stands in the example of its environment file."""
        [path] = self.all("EnvironmentFile")
        return environment_file((FOLDER / f"{Path(path).name}.example").read_text())

    def child(self, directory: Path, secrets: Mapping[str, str], more: Mapping[str, str]) -> Child:
        """Its ``ExecStart``, with its environment, its example's and ``more``, and its credentials; not started."""
        assert set(secrets) == set(self.credentials)
        held = directory / "credentials" / self.name
        held.mkdir(parents=True)
        for name, secret in secrets.items():
            (held / name).write_text(f"{secret}\n")
        environment = {name: self._expanded(value, directory) for name, value in self.environment.items()}
        program, *words = shlex.split(self._expanded(self.one("ExecStart"), directory))
        assert program == PROGRAM
        return Child(
            self.name, [sys.executable, "-m", "callyard.main", *words],
            environment={**environment, **self.example(), **more}, log=directory / f"{self.name}.log",
        )  # fmt: skip

    def _expanded(self, text: str, directory: Path) -> str:
        for specifier, value in {"%t": directory, "%n": self.name, "%S": directory, "%i": self.instance}.items():
            text = text.replace(specifier, str(value))
        assert "%" not in text
        return text


def environment_file(text: str, *, comments: bool = False) -> dict[str, str]:
    """An environment file's variables; ``comments``: those that stand in comments instead."""
    pattern = r"^#(CALLYARD_\w+)=(.*)$" if comments else r"^(\w+)=(.*)$"
    return {name: "".join(shlex.split(value)) for name, value in re.findall(pattern, text, re.MULTILINE)}
