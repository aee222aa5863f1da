"""``callyard replay``: recorded inputs again through this version's decisions, or into another Kafka."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console

from callyard.options import ConfigOption, JsonOption
from callyard.settings import KafkaSettings, Loaded, PolicySettings, StreamSettings, load
from streams.audit.progress import shown
from streams.audit.proof_commands import FromOption, ToOption, UnreadableOption, quiet
from streams.audit.reading import Span, Unreadable, span, warner
from streams.audit.replay import Replayed, replay
from streams.policy import Policy

app = typer.Typer(add_completion=False, help=__doc__)
INCOMPLETE = 7


@app.command(name="replay")
def command(
    start: FromOption = None,
    end: ToOption = None,
    policy: Annotated[
        Path | None, typer.Option("--policy", help="Decide by this settings file's [policy], not by the recorded one.")
    ] = None,
    unreadable: UnreadableOption = Unreadable.SKIP,
    json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Decide a period's recorded inputs again, in the recorded order, and report each decision that differs.

    Exit status 0: all are the same; 1: some differ; 3: the period is empty; 5: a newer schema version; 6: an unreadable
    record with --unreadable fail; 7: none differs, but some could not be compared.
    """
    error = quiet()
    settings = load(KafkaSettings, StreamSettings, config=config)
    chosen = None if policy is None else Policy.of(load(PolicySettings, config=policy, environment={})[PolicySettings])
    found = asyncio.run(_replay(settings, span(start, end), chosen, unreadable, error))
    if json:
        typer.echo(orjson.dumps(found.as_dict()).decode())
    else:
        _show(Console(soft_wrap=True, markup=False, highlight=False), found)
    if found.rerun.differing:
        raise typer.Exit(1)
    if found.rerun.left_out or not found.rerun.compared:
        raise typer.Exit(INCOMPLETE)


async def _replay(
    settings: Loaded, period: Span, policy: Policy | None, unreadable: Unreadable, error: Console
) -> Replayed:
    async with replay(
        settings[KafkaSettings],
        period,
        lookback_ms=round(2000 * settings[StreamSettings].snapshot_seconds),
        policy=policy,
        unreadable=unreadable,
        say=warner(error),
    ) as found:
        with shown(found.reading, "replaying", error):
            return await found.run()


def _show(console: Console, found: Replayed) -> None:
    rerun = found.rerun
    for one in rerun.differences:
        console.print(f"{one.where}, conference {one.conference}, version {one.version}, {one.event_type}:")
        console.print(f"  recorded  {one.recorded}\n  replayed  {one.replayed}")
        for detail in one.details:
            console.print(f"    {detail}")
    if rerun.differing > len(rerun.differences):
        console.print(f"… and {rerun.differing - len(rerun.differences):,} more")
    console.print(f"{rerun.compared:,} decisions of {found.span} decided again: {rerun.differing:,} differ")
    if rerun.worded:
        console.print(f"{rerun.worded:,} are the same and give their reason in other words")
    for why, count in rerun.left_out.most_common():
        console.print(f"{count:,} could not be compared: {why}")
    if found.findings.total:
        console.print(f"The journal itself has {found.findings.total:,} findings: run 'callyard audit verify'")
