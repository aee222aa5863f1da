"""``callyard replay``: recorded inputs again through this version's decisions, or into another Kafka."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console

from callyard.options import ConfigOption, JsonOption
from callyard.settings import KafkaSettings, Loaded, PolicySettings, StreamSettings, load
from streams.audit.into import Pace, Written, require_other, write
from streams.audit.lines import Lines
from streams.audit.progress import bar, quiet
from streams.audit.proof_commands import FromOption, ToOption, UnreadableOption
from streams.audit.reading import Span, Unreadable, span, warner
from streams.audit.replay import Replayed
from streams.audit.shares import Order, divided, in_shares, processes_for, replay_share, sizes
from streams.audit.times import moment
from streams.policy import Policy

app = typer.Typer(add_completion=False, help=__doc__)
INCOMPLETE = 7
WORTH = 50_000
"""Records of the journal from which on a second process is worth its start."""


@app.command(name="replay")
def command(
    start: FromOption = None,
    end: ToOption = None,
    policy: Annotated[
        Path | None, typer.Option("--policy", help="Decide by this settings file's [policy], not by the recorded one.")
    ] = None,
    into: Annotated[
        Path | None,
        typer.Option(
            "--into", help="Compare nothing: write the inputs into the Kafka of this settings file's [kafka]."
        ),
    ] = None,
    speed: Annotated[
        float | None,
        typer.Option("--speed", min=0.01, max=1e6, help="With --into: times faster than it was; default: at once."),
    ] = None,
    space: Annotated[
        float,
        typer.Option(
            "--space", min=0.01, max=1e6, help="With --into: times longer between two inputs' original times."
        ),
    ] = 1.0,
    begin: Annotated[
        str | None, typer.Option("--begin", help="With --into: original time of the first input; default: its own.")
    ] = None,
    same_kafka: Annotated[
        bool, typer.Option("--same-kafka", help="With --into: it may be the Kafka that the inputs are from.")
    ] = False,
    unreadable: UnreadableOption = Unreadable.SKIP,
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, help="Decide in so many processes; default: one for each core.")
    ] = None,
    json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Decide a period's recorded inputs again, in the recorded order, and report each decision that differs.

    Exit status 0: all are the same; 1: some differ; 3: the period is empty; 5: a newer schema version; 6: an unreadable
    record with --unreadable fail; 7: none differs, but some could not be compared.
    """
    error = quiet()
    settings = load(KafkaSettings, StreamSettings, config=config)
    if into is not None:
        target = load(KafkaSettings, config=into, environment={})[KafkaSettings]
        begin_ms = None if begin is None else moment(begin, int(time.time() * 1000))
        pace = Pace(speed, space, begin_ms)
        period = span(start, end)
        _show_written(asyncio.run(_into(settings, target, period, pace, same_kafka, unreadable)), target, json)
        return
    chosen = None if policy is None else Policy.of(load(PolicySettings, config=policy, environment={})[PolicySettings])
    order = Order(
        settings[KafkaSettings], span(start, end), settings[StreamSettings].lookback_ms, unreadable, chosen,
    )  # fmt: skip
    found = _replay(order, processes, error)
    if json:
        typer.echo(orjson.dumps(found.as_dict()).decode())
    else:
        _show(Lines(), found)
    if found.result.differing:
        raise typer.Exit(1)
    if found.result.left_out or not found.result.compared:
        raise typer.Exit(INCOMPLETE)


def _replay(order: Order, processes: int | None, error: Console) -> Replayed:
    found = asyncio.run(sizes(order.settings, order.span))
    shares = divided(found, processes or processes_for(sum(found.values()), WORTH))
    with bar("replaying", sum(found.values()), error) as progress:
        return in_shares(replay_share, order, shares, progress)


async def _into(
    settings: Loaded, target: KafkaSettings, period: Span, pace: Pace, same_kafka: bool, unreadable: Unreadable
) -> Written:  # fmt: skip
    source = settings[KafkaSettings]
    await require_other(source, target, same_kafka)
    return await write(source, target, period, pace, unreadable, warner(quiet()))


def _show_written(written: Written, target: KafkaSettings, json: bool) -> None:
    if json:
        typer.echo(orjson.dumps(dataclasses.asdict(written)).decode())
    else:
        rest = f"; {written.missing:,} had expired" if written.missing else ""
        rest += f"; {written.unreadable:,} records of the journal were unreadable" if written.unreadable else ""
        typer.echo(
            f"{written.inputs:,} inputs written to {target.topic_prefix} at {target.bootstrap_servers}, and decided"
            f" there, in {written.seconds:.1f} s{rest}"
        )
    if written.missing or written.unreadable:
        raise typer.Exit(INCOMPLETE)


def _show(console: Console, found: Replayed) -> None:
    result = found.result
    for one in result.differences:
        console.print(f"{one.where}, conference {one.conference}, version {one.version}, {one.event_type}:")
        console.print(f"  recorded  {one.recorded}")
        console.print(f"  replayed  {one.replayed}")
        for detail in one.details:
            console.print(f"    {detail}")
    if result.differing > len(result.differences):
        console.print(f"… and {result.differing - len(result.differences):,} more")
    console.print(f"{result.compared:,} decisions of {found.span} decided again: {result.differing:,} differ")
    if result.worded:
        console.print(f"{result.worded:,} are the same and give their reason in other words")
    for why, count in result.left_out.most_common():
        console.print(f"{count:,} could not be compared: {why}")
    if found.findings.total:
        console.print(f"The journal itself has {found.findings.total:,} findings: run 'callyard audit verify'")
