"""``callyard audit forget``: where a caller's number is held, until when, and what can be done about it."""

from __future__ import annotations

import asyncio
from typing import Annotated

import orjson
import typer

from callyard import numbers
from callyard.options import ConfigOption, JsonOption
from callyard.settings import KafkaSettings, PrivacySettings, load
from streams.audit import forget
from streams.audit.options import ZoneOption, out
from streams.audit.reading import UnknownError
from streams.audit.times import shown, zone_of

app = typer.Typer(add_completion=False, help=__doc__)

CANNOT = """\
What this can't do:
  Kafka can't remove one record out of a log. --erase removes everything before it in its partition as well: the
  calls of others, for audits, and the beginnings of the journal's chains ('audit verify' then begins later).
  The table's changelog keeps old rows until Kafka compacts it (min.cleanable.dirty.ratio, segment.ms).
  A masked number stands for all numbers that differ in its last digits: what was found may be someone else's.
  Hashes are found only with the key that made them; throwing that key away unlinks all hashes from all numbers.
  Asterisk's, the provider's and the nodes' own logs, exports and backups are not Callyard's to erase."""


@app.command(name="forget")
def command(
    number: Annotated[str, typer.Argument(help="The caller's number: in full (found in each form), masked or a hash.")],
    erase: Annotated[
        bool, typer.Option("--erase", help="Remove all records up to the newest with this number, others' as well.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --erase: don't ask.")] = False,
    zone: ZoneOption = "UTC",
    json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Tell where Kafka holds a caller's number, when retention removes it, and what can and can't be erased.

    Without --erase nothing is changed. Exit statuses: 1 it can't be erased now, 4 the number is held nowhere.
    """
    settings = load(KafkaSettings, PrivacySettings, config=config)
    kafka, at = settings[KafkaSettings], zone_of(zone)
    forms = numbers.forms(number, settings[PrivacySettings].key)
    found = asyncio.run(forget.search(kafka, forms))
    if not any(held.records for held in found.topics):
        raise UnknownError(f"{' or '.join(sorted(forms))}: no topic holds it")
    erased: dict[str, dict[int, int]] = {}
    if erase:
        if not yes:
            typer.confirm(
                "Records of other calls, up to the newest with this number, are removed too. Go on?",
                abort=True,
                err=True,
            )
        erased = asyncio.run(forget.erase(kafka, found))
    if json:
        told = {
            "forms": sorted(forms), "topics": [held.as_dict() for held in found.topics],
            "rows": [{"call_id": row.call_id, "state": row.state.value} for row in found.rows],
            "forgotten_by_ms": found.forgotten_by_ms, "erased": erased,
        }  # fmt: skip
        typer.echo(orjson.dumps(told, option=orjson.OPT_NON_STR_KEYS))
        return
    console = out()
    for held in found.topics:
        if not held.records or held.oldest_ms is None or held.newest_ms is None:
            console.print(f"{held.topic}: nothing")
            continue
        forms_told = ", ".join(f"{count} as {form}" for form, count in sorted(held.by_form.items()))
        console.print(f"{held.topic}: {held.records} records ({forms_told})")
        console.print(f"    from {shown(held.oldest_ms, at)} to {shown(held.newest_ms, at)}")
        if held.gone_by_ms is not None:
            console.print(f"    removed by retention until {shown(held.gone_by_ms, at)}")
        if held.topic in erased:
            console.print(f"    erased now, with all that was before: {erased[held.topic]} (partition: up to offset)")
    if found.rows:
        by = found.forgotten_by_ms
        until = "once its call is over and forgotten" if by is None else f"until {shown(by, at)}"
        console.print(f"The table has {len(found.rows)} rows with it; the stream itself forgets them {until}")
    for line in CANNOT.splitlines():
        console.print(line)
