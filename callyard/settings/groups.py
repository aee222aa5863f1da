"""What every group of settings is: one table of the file, one prefix of the environment, checked by pydantic.

Reads nothing: `callyard.settings.loading` does. A message here never shows a value, which may be a secret.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, SecretStr

PREFIX = "CALLYARD_"
PATH = r"^(/[A-Za-z0-9_./@+-]+)?$"
HOST_NAME = r"^[A-Za-z0-9.:-]*$"
NETWORKS = r"^[0-9A-Fa-f.:/]+(,[0-9A-Fa-f.:/]+)*$"


class SettingsError(Exception):
    """Settings are missing or wrong. ``problems`` names each one by its variable and says what to do."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__("settings:\n" + "\n".join(f"  {problem}" for problem in self.problems))


class Group(BaseModel):
    """A group of settings: one table of the file, one prefix of the environment."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)
    table: ClassVar[str]

    @classmethod
    def variable(cls, name: str) -> str:
        """The environment variable of one of this group's settings."""
        return f"{PREFIX}{cls.table.upper()}_{name.upper()}"


def require_one_line(secret: SecretStr) -> SecretStr:
    """Give it back if it is. A line break in it would begin another command of the protocol that it is sent by."""
    if not secret.get_secret_value() or any(c in secret.get_secret_value() for c in "\r\n\0"):
        raise ValueError("must be one line of text")
    return secret
