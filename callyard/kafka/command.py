"""``callyard kafka``: run the embedded Kafka in the foreground until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import orjson
import typer

from callyard import tasks
from callyard.cache import state_folder
from callyard.kafka import embedded, jars
from callyard.options import JsonOption

app = typer.Typer(add_completion=False, help=__doc__)


@app.command(name="kafka")
def command(
    data: Annotated[
        Path | None, typer.Option(help="Folder of its records. Default: kafka in Callyard's state folder.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0: a free one.")] = 9092,
    json: JsonOption = False,
    prepare: Annotated[bool, typer.Option("--prepare", help="Only fetch what it needs, then end.")] = False,
) -> None:
    """Run a single Kafka on 127.0.0.1 and print its address when it serves clients.

    Its records stay in the data folder. Kafka itself is fetched once (about 45 MB), into CALLYARD_CACHE or
    ~/.cache/callyard.
    """
    if not jars.prepared():
        jars.prepare(lambda line: typer.echo(line, err=True))
    if not prepare:
        tasks.run(lambda stop: _serve(stop, data or state_folder() / "kafka", port, json=json))


async def _serve(stop: asyncio.Event, data: Path, port: int, *, json: bool) -> None:
    async with embedded.running(data, port) as kafka:
        if json:
            facts = {"bootstrap_servers": kafka.bootstrap_servers, "data": str(kafka.data), "pid": kafka.pid,
                     "version": jars.KAFKA_VERSION}  # fmt: skip
            typer.echo(orjson.dumps(facts).decode())
        else:
            typer.echo(f"Kafka {jars.KAFKA_VERSION} serves {kafka.bootstrap_servers}; records and log in {kafka.data}")
        stopping, ended = asyncio.ensure_future(stop.wait()), asyncio.ensure_future(kafka.ended())
        await asyncio.wait([stopping, ended], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not stop.is_set():
            raise await ended
        ended.cancel()
