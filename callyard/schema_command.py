"""``callyard schema``: the contract for machines (JSON Schema of every record), the reference of settings and metrics.

``docs/schema.json``, ``docs/settings.md`` and ``docs/metrics.md`` are what it prints; a test fails when they differ, so
that neither the contract nor a setting or metric changes unseen. ``make docs`` writes them anew.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import groupby
from typing import Annotated, Any

import orjson
import typer
from pydantic import TypeAdapter
from pydantic.json_schema import models_json_schema

from callyard import metrics_reference, records, settings
from callyard.errors import CommandError
from callyard.records import Record
from callyard.settings import GROUPS

app = typer.Typer(add_completion=False, help=__doc__)

TOPICS: dict[str, tuple[TypeAdapter[Any], tuple[type[Record], ...]]] = {
    "registrations": (records.REGISTRATIONS, (records.ConferenceRegistered, records.ConferenceUnregistered)),
    "calls": (
        records.CALLS,
        (
            records.CallerParked,
            records.CallAlive,
            records.DialStarted,
            records.CallerConnected,
            records.DialFailed,
            records.CallerLeft,
        ),
    ),
    "timers": (records.TIMERS, (records.DeadlinePassed,)),
    "dials": (records.DIALS, (records.DialInstruction, records.TellInstruction)),
    "journal": (
        records.JOURNAL,
        (records.JournalEntry, records.DeskSnapshot, records.EpochBegan, records.PolicyDeclared),
    ),
}
"""For each topic that holds records: how it is read, and which types it holds."""


@app.command(name="schema")
def command(
    settings: Annotated[bool, typer.Option("--settings", help="Print the settings' reference (Markdown).")] = False,
    table: Annotated[
        list[str] | None, typer.Option("--table", help="With --settings: this table only (may be given again).")
    ] = None,
    metrics: Annotated[
        bool, typer.Option("--metrics", help="Print the metrics' reference (Markdown); needs all workers installed.")
    ] = False,
) -> None:
    """Print the JSON Schema of all records by topic, or the reference of all settings or metrics as Markdown."""
    tables = [group.table for group in GROUPS]
    if unknown := set(table or ()) - set(tables):
        raise CommandError(f"no table is named {', '.join(sorted(unknown))}; there are {', '.join(tables)}")
    if metrics:
        typer.echo(metrics_reference.reference(), nl=False)
    elif table:
        typer.echo("\n\n".join(settings_tables("###", table)))
    else:
        typer.echo(settings_reference() if settings else schema_text(), nl=False)


def schema() -> dict[str, Any]:
    """One JSON Schema document: ``$defs`` holds each record type, ``x-topics`` says which topic holds which."""
    types = [(model, "validation") for _, models in TOPICS.values() for model in models]
    _, document = models_json_schema(types, ref_template="#/$defs/{model}")  # type: ignore[arg-type]
    for model, _ in types:
        # They have defaults, so that a record can be made without naming them; no reader does without them.
        definition = document["$defs"][model.__name__]
        definition["required"] = ["type", "schema_version", *definition.get("required", [])]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Callyard's records",
        "description": "Values of Callyard's Kafka topics: one JSON object a record, told apart by type. Topic names"
        " are led by the prefix (CALLYARD_KAFKA_TOPIC_PREFIX) and a dot.",
        "schema_version": records.SCHEMA_VERSION,
        "x-topics": {
            topic: {"oneOf": [{"$ref": f"#/$defs/{model.__name__}"} for model in models]}
            for topic, (_, models) in TOPICS.items()
        },
        "$defs": document["$defs"],
    }


def schema_text() -> str:
    """The schema as it stands in docs/schema.json."""
    return orjson.dumps(schema(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode()


def settings_reference() -> str:
    """The reference of all settings as it stands in docs/settings.md."""
    parts = [
        "# Settings",
        "Made by `callyard schema --settings`; change `callyard/settings/` instead.",
        "Each setting is an environment variable. It may also stand in the TOML file that `--config` names, under the"
        " table given here and without the prefix: `CALLYARD_KAFKA_PARTITIONS` is `partitions` in `[kafka]`. The"
        " environment wins. A secret may come from a file instead: `CALLYARD_AMI_SECRET_FILE` names it. A variable that"
        " begins with `CALLYARD_` and is no setting is an error: it is a misspelt one.",
    ]
    parts += settings_tables("##")
    return "\n\n".join(parts) + "\n"


def settings_tables(heading: str, only: Collection[str] | None = None) -> list[str]:
    """A Markdown table for each group of settings, or for these only, under headings of this level."""
    parts = []
    for (table, summary), rows in groupby(settings.reference(), key=lambda row: (_table(row[0]), row[3])):
        if only is None or table in only:
            lines = [f"{heading} [{table}]", "", summary, "", "| variable | default | meaning |", "|---|---|---|"]
            lines += [f"| `{name}` | {_code(default)} | {_cell(meaning)} |" for name, default, meaning, _ in rows]
            parts.append("\n".join(lines))
    return parts


def _table(variable: str) -> str:
    return settings.variables()[variable].table


def _code(default: str) -> str:
    return default if default in {"", "required", "host name"} else f"`{_cell(default)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
