"""``callyard topics``: create the topics and check them; safe to run again, and beside running workers."""

from __future__ import annotations

import asyncio
import logging
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

from callyard import clients, topics
from callyard.options import ConfigOption, JsonOption
from callyard.settings import KafkaSettings, load

app = typer.Typer(add_completion=False, help=__doc__)


@app.command(name="topics")
def command(
    config: ConfigOption = None,
    json: JsonOption = False,
    check: Annotated[bool, typer.Option("--check", help="Create nothing, only check.")] = False,
) -> None:
    """Create the topics that are missing, then check all of them: partitions, retention, time stamps.

    Exit status 1 where one is missing or not as it must be; each problem says what to do. Settings: CALLYARD_KAFKA_….
    """
    # aiokafka logs what it raises, too; here the error says it once.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    settings = load(KafkaSettings, config=config)[KafkaSettings]
    created = asyncio.run(ensure(settings, create=not check))
    rows = _rows(settings, created)
    if json:
        typer.echo(orjson.dumps(rows).decode())
        return
    table = Table("topic", "partitions", "kept", "state", title=f"Kafka at {settings.bootstrap_servers}")
    for row in rows:
        table.add_row(
            row["topic"], str(row["partitions"]), row["kept"], "created" if row["created"] else "as it must be"
        )
    Console(highlight=False).print(table)


async def ensure(settings: KafkaSettings, *, create: bool = True) -> list[str]:
    """Create what is missing (unless told not to), check everything, and return the names of what was created.

    Raises `KafkaUnreachableError` or `TopicsError`.
    """
    async with clients.admin(settings) as admin:
        created = await topics.create(admin, settings) if create else []
        await topics.check(admin, settings)
    return created


def _rows(settings: KafkaSettings, created: list[str]) -> list[dict[str, Any]]:
    return [
        {
            "topic": topic.name,
            "partitions": topic.partitions,
            "kept": _kept(topic),
            "config": dict(topic.config),
            "created": topic.name in created,
        }
        for topic in topics.topics(settings).all
    ]


def _kept(topic: topics.Topic) -> str:
    if topic.config["cleanup.policy"] == "compact":
        return "newest of each key"
    if topic.config["retention.ms"] == "-1":
        return "for ever"
    return f"{int(topic.config['retention.ms']) / topics.DAY_MS:g} days"
