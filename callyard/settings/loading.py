"""All groups of settings, read from the environment and an optional file, all problems of all of them at once.

Nothing here connects or starts anything.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from pydantic import SecretStr, ValidationError
from pydantic_core import PydanticUndefined

from callyard.settings.asterisk import AsteriskSettings
from callyard.settings.freeswitch import FreeswitchSettings
from callyard.settings.gateway import AmiSettings, GatewaySettings, PrivacySettings
from callyard.settings.groups import PREFIX, Group, SettingsError
from callyard.settings.kafka import KafkaSettings
from callyard.settings.node import BigBlueButtonSettings, EslSettings, NodeSettings
from callyard.settings.sip import SipSettings
from callyard.settings.stream import AuditSettings, PolicySettings, StreamSettings
from callyard.settings.worker import HealthSettings, LogSettings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

G = TypeVar("G", bound=Group)
GROUPS: tuple[type[Group], ...] = (
    KafkaSettings, LogSettings, HealthSettings, NodeSettings, EslSettings, BigBlueButtonSettings, FreeswitchSettings,
    GatewaySettings, PrivacySettings, AmiSettings, SipSettings, AsteriskSettings, StreamSettings, PolicySettings,
    AuditSettings,
)  # fmt: skip


class Loaded:
    """Settings that were read and checked: ``loaded[KafkaSettings].partitions``."""

    def __init__(self, groups: Mapping[type[Group], Group]) -> None:
        self._groups = dict(groups)

    def __getitem__(self, group: type[G]) -> G:
        found = self._groups[group]
        assert isinstance(found, group)  # noqa: S101 - holds by construction; tells the type checker
        return found


def load(
    *groups: type[Group], config: Path | None = None, environment: Mapping[str, str] | None = None
) -> Loaded:  # fmt: skip
    """Read and check these groups. Raises `SettingsError` with all problems of all of them."""
    env = os.environ if environment is None else environment
    problems: list[str] = []
    tables = _read_file(config, problems)
    problems.extend(_unknown_variables(env))
    loaded: dict[type[Group], Group] = {}
    for group in groups:
        values = dict(tables.get(group.table, {}))
        values.update(_from_environment(group, env, problems))
        try:
            loaded[group] = group.model_validate(values)
        except ValidationError as error:
            found = error.errors(include_url=False, include_input=False, include_context=False)
            problems.extend(_explain(group, problem) for problem in found)
    if problems:
        raise SettingsError(problems)
    return Loaded(loaded)


def given(*groups: type[Group], config: Path | None = None, environment: Mapping[str, str] | None = None) -> bool:
    """Whether any setting of these groups was set at all, rightly or not, in the environment or in the file."""
    env = os.environ if environment is None else environment
    tables = _read_file(config, [])
    return any(tables.get(group.table) for group in groups) or any(
        name in env for name, group in variables().items() if group in groups
    )


def _explain(group: type[Group], problem: Any) -> str:
    if not problem["loc"]:  # what several settings together get wrong
        return str(problem["msg"]).removeprefix("Value error, ")
    name = str(problem["loc"][0])
    if problem["type"] == "missing":
        return f"{group.variable(name)} is not set: {group.model_fields[name].description}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{group.variable(name)}: {message}. It means: {group.model_fields[name].description}"


def _read_file(config: Path | None, problems: list[str]) -> dict[str, dict[str, Any]]:
    if config is None:
        return {}
    try:
        content = tomllib.loads(config.read_text(encoding="utf-8"))
    except OSError as error:
        problems.append(f"--config {config}: {error.strerror}")
        return {}
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        problems.append(f"--config {config} is not TOML: {error}")
        return {}
    known = {group.table: group for group in GROUPS}
    tables: dict[str, dict[str, Any]] = {}
    for table, values in content.items():
        if table not in known or not isinstance(values, dict):
            problems.append(f"--config {config}: [{table}] is none of {', '.join(known)}")
            continue
        fields = known[table].model_fields
        problems.extend(
            f"--config {config}: [{table}] {name} is unknown{_near(name, fields)}"
            for name in values
            if name not in fields
        )
        tables[table] = {name: value for name, value in values.items() if name in fields}
    return tables


def _from_environment(group: type[Group], env: Mapping[str, str], problems: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, field in group.model_fields.items():
        variable = group.variable(name)
        if variable in env:
            values[name] = env[variable]
        if not _is_secret(field.annotation) or f"{variable}_FILE" not in env:
            continue
        path = Path(env[f"{variable}_FILE"])
        if variable in env:
            problems.append(f"{variable} and {variable}_FILE are both set: unset one")
        try:
            values[name] = path.read_text(encoding="utf-8").removesuffix("\n")
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"{variable}_FILE: cannot read {path}: {error}")
    return values


def _is_secret(annotation: Any) -> bool:
    return annotation is SecretStr or SecretStr in getattr(annotation, "__args__", ())


def variables() -> dict[str, type[Group]]:
    """Every environment variable that is a setting, with its group."""
    found: dict[str, type[Group]] = {}
    for group in GROUPS:
        for name, field in group.model_fields.items():
            found[group.variable(name)] = group
            if _is_secret(field.annotation):
                found[f"{group.variable(name)}_FILE"] = group
    return found


def _unknown_variables(env: Mapping[str, str]) -> list[str]:
    # A misspelt variable would be silence and a default: the worst way to learn of it.
    known = variables()
    return [
        f"{name} is no setting{_near(name, known)}"
        for name in sorted(env)
        if name.startswith(PREFIX)
        and name not in known
        and name not in _NOT_SETTINGS
        and not _SERVICE_LINK.search(name)
    ]


_NOT_SETTINGS = frozenset({"CALLYARD_CACHE"})
"""Variables of the same prefix that the command line or the Makefile read."""

_SERVICE_LINK = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP)(_\w+)?)?)$")
"""What Kubernetes puts into the environment for a service of a like name; not a misspelling."""


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def reference() -> list[tuple[str, str, str, str]]:
    """All settings as rows for the reference page: variable, default, description, group's summary."""
    rows = []
    for group in GROUPS:
        for name, field in group.model_fields.items():
            if field.default is not PydanticUndefined:
                default = field.default.value if isinstance(field.default, Enum) else field.default
                shown = "" if default is None else str(default)
            else:
                shown = "host name" if field.default_factory is not None else "required"
            rows.append((group.variable(name), shown, field.description or "", (group.__doc__ or "").strip()))
    return rows
