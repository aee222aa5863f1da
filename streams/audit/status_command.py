"""``callyard status``: whether all of it works, who decides and speaks, and what is to be done, on one screen."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Annotated

import orjson
import typer
from rich.console import Console

from callyard.doctor import status as exit_status
from callyard.doctor import tell
from callyard.options import ConfigOption, JsonOption
from callyard.settings import KafkaSettings, load
from streams.audit.look import look
from streams.audit.options import grid, out
from streams.audit.status import Gateway, Status, ranges
from streams.audit.times import lasted

app = typer.Typer(add_completion=False, help=__doc__)


@app.command(name="status")
def command(
    patience: Annotated[
        float, typer.Option(min=0, max=600, help="Seconds for which something may stay undecided before that is wrong.")
    ] = 5,
    json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Show whether all of it works: Kafka, topics, stream workers, gateways, callers; and what is wrong.

    Exit status 0: all is well, or there are warnings only; 1: something is wrong, and what to do stands with it. An
    auditor's rights are enough.
    """
    # aiokafka logs what it raises, too; here the finding says it once.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    kafka = load(KafkaSettings, config=config)[KafkaSettings]
    found = asyncio.run(look(kafka, patience))
    findings = found.findings()
    if json:
        typer.echo(orjson.dumps(found.as_dict()))
        raise typer.Exit(exit_status(findings))
    if not found.unreachable:
        _show(found)
    raise typer.Exit(tell(findings, json=False))


def _show(found: Status) -> None:
    console = out()
    callers = ", ".join(f"{count} callers {state}" for state, count in found.callers.items()) or "no callers"
    console.print(f"Kafka at {found.servers}: {found.registrations} registrations, {callers}")
    console.print()
    rows = [(name, _age(found, stamp), str(found.inputs[name].undecided) if name in found.inputs else "")
            for name, stamp in found.newest_ms.items()]  # fmt: skip
    if rows:
        _show_grid(console, ("topic", "newest record", "undecided"), rows)
    if found.stream is not None and found.stream.members:
        _show_grid(console, ("stream worker", "at", "partitions"), (
            (member.client, member.host, ranges(member.partitions) or "none") for member in found.stream.members
        ))  # fmt: skip
    if found.gateways:
        names = ("gateway", "speaks", "agents", "callers", "waiting instructions")
        _show_grid(console, names, (_gateway(one) for one in found.gateways))


def _show_grid(console: Console, names: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    for line in grid(names, rows):
        console.print(line)
    console.print()


def _age(found: Status, stamp: int | None) -> str:
    return "none" if stamp is None else f"{lasted(max(0, found.at_ms - stamp))} ago"


def _gateway(one: Gateway) -> tuple[str, ...]:
    speaks = f"{one.owner.client} at {one.owner.host}" if one.owner else "nobody"
    return one.id, speaks, str(len(one.group.members)), str(one.callers), str(one.lag.undecided)
