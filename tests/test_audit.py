"""Audits of calls made by the real pipeline: who is asked about is found, and what is told is what happened."""

from __future__ import annotations

import csv
import json
import re
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
import pytest_asyncio

from callyard import main, numbers
from callyard.parts import cluster, sipp
from callyard.settings import KafkaSettings, PolicySettings, load
from streams.audit.export_command import ROWS
from streams.audit.exports import CallRows
from streams.audit.options import journal
from streams.audit.reading import Span, Unreadable
from streams.audit.table import Table
from streams.audit.table_command import past, present
from streams.rows import StayState
from tests.support.cluster import connected, decided, parked
from tests.support.wait import until

pytestmark = [pytest.mark.kafka, pytest.mark.asterisk]

KEY = "the operator's own, known to nobody else"
SHE = "+4930123456"
HERS, CROWDED, NOBODYS = "61001", "61002", "61003"
CROWD = 80
DOCS = Path(__file__).parent.parent / "docs"


@dataclass
class Day:
    """What happened, as the telephones and the test saw it."""

    settings: KafkaSettings
    before_ms: int
    """Before anything had opened."""
    full_ms: int
    """While everybody talked."""
    table: Table
    """The stream's own table at that time."""
    after_ms: int


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def day(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Day]:
    """A crowd in a conference; a caller who hangs up; and she, who waits, is dialled in vain, and gets through."""
    folder = tmp_path_factory.mktemp("audit")
    secret = {"CALLYARD_GATEWAY_CALLER_NUMBER": "hashed", "CALLYARD_PRIVACY_CALLER_KEY": KEY}
    async with cluster.running(folder, partitions=4, environment=secret) as whole:
        one, two = whole.nodes

        def calling(name: str, calls: list[sipp.Call]) -> Any:
            return sipp.calling(folder / name, whole.entrance, calls, name=name, rate=50)

        async with calling("she", [sipp.Call(SHE, f"{HERS}#")]):
            await parked(whole, [HERS])
            async with calling("gives-up", [sipp.Call("+4930999", f"{NOBODYS}#")]) as impatient:
                await parked(whole, [NOBODYS])
                await impatient.hang_up()
            await until(lambda: told_of(whole, "left", 1), what="the end of who gave up in the journal")
            before = now_ms()
            one.freeswitch.open(CROWDED)
            crowd = [sipp.Call(f"+49307{number:04}", f"{CROWDED}#") for number in range(CROWD)]
            async with calling("crowd", crowd):
                await two.sip.kill()
                two.freeswitch.open(HERS)
                await until(lambda: failed(whole), what="a dial that fails")
                one.freeswitch.open(HERS)
                await connected(one, HERS)
                await connected(one, CROWDED, CROWD, timeout=60)
                await until(lambda: told_of(whole, "connected", CROWD + 1), 30, "all connections in the journal")
                table, full = await still(whole.settings)
        await until(lambda: told_of(whole, "left", CROWD + 2), 30, "all ends in the journal")
        yield Day(whole.settings, before, full, table, now_ms())


def now_ms() -> int:
    return int(time.time() * 1000)


async def failed(whole: cluster.Cluster) -> bool:
    return any(entry.outcome == "dial-failed" for entry in await decided(whole))


async def told_of(whole: cluster.Cluster, outcome: str, count: int) -> bool:
    return sum(entry.outcome == outcome for entry in await decided(whole)) >= count


async def still(settings: KafkaSettings) -> tuple[Table, int]:
    """The stream's table, and a time at which it was that."""
    while True:
        one = await present(settings)
        at = now_ms()
        if one.callers == (await present(settings)).callers:
            return one, at


@pytest.fixture
def run(day: Day, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """Runs a command as an operator does: exit status, standard output, standard error."""
    monkeypatch.setenv("CALLYARD_KAFKA_BOOTSTRAP_SERVERS", day.settings.bootstrap_servers)
    monkeypatch.setenv("CALLYARD_PRIVACY_CALLER_KEY", KEY)

    def command(*words: str) -> tuple[int, str, str]:
        status = main.main(list(words))
        return status, *capfd.readouterr()

    return command


def told(result: tuple[int, str, str]) -> Any:
    status, out, err = result
    assert status == 0, err
    return json.loads(out)


# --- one call --------------------------------------------------------------------------------------------------------


def test_her_story_is_found_by_her_number_and_tells_what_she_waited_for(run: Any) -> None:
    found = told(run("audit", "call", "--caller", SHE, "--json"))
    assert found["findings"] == []
    [call] = found["calls"]
    happened = [h["what"] for h in call["happenings"]]
    assert happened[0] == "parked"
    assert call["happenings"][0]["known"] == []
    expected = [
        "parked",
        "registered",
        "instructed",
        "failed",
        "registered",
        "instructed",
        "started",
        "connected",
        "left",
    ]
    rest = iter(happened)
    assert all(what in rest for what in expected), happened
    assert [h["node_id"] for h in call["happenings"] if h["what"] == "registered"] == ["node-2", "node-1"]
    failures = [h for h in call["happenings"] if h["what"] == "failed"]
    assert {h["reason"] for h in failures} == {"unreachable"}
    [stay] = call["stays"]
    assert (stay["conference"], stay["node_id"], stay["outcome"]) == (HERS, "node-1", "conference-left")
    assert stay["attempts"] == happened.count("instructed") == len(failures) + happened.count("told") + 1
    assert sum(stay["waits"].values()) == stay["waited_ms"] > 0
    opened = call["happenings"][happened.index("registered")]["at_ms"]
    assert stay["waits"]["the conference was not registered anywhere"] == opened - stay["since_ms"]
    assert call["missing"] == []

    status, out, _ = run("audit", "call", call["call_id"], "--zone", "Europe/Berlin")
    assert status == 0
    assert f"Call {call['call_id']} at gateway gw-1, caller {numbers.hashed(SHE, KEY)}" in out
    assert f"known then: conference {HERS} was not registered anywhere" in out
    assert re.search(r"\+01:00 .* failed .* attempt 1 failed: unreachable", out)
    assert SHE not in out


def test_a_part_of_her_story_says_what_is_missing(run: Any, day: Day) -> None:
    at = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(day.full_ms / 1000))}Z"
    whole = told(run("audit", "call", "--caller", SHE, "--json"))["calls"][0]
    status, out, _ = run("audit", "call", whole["call_id"], "--from", "-24h", "--to", at)
    assert status == 0
    assert "At the end of the range the call was " in out


def test_no_number_is_found_without_the_key(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLYARD_PRIVACY_CALLER_KEY", KEY[::-1])
    status, out, err = run("audit", "call", "--caller", SHE)
    assert (status, out) == (4, "")
    assert "no such call in the journal" in err


def test_calls_of_a_conference_are_listed_when_they_are_many(run: Any) -> None:
    status, out, _ = run("audit", "call", "--conference", CROWDED)
    assert status == 0
    assert (
        len(re.findall(rf"^\S+Z  gw-1/\S+  hash:\w+  {CROWDED}  waited .* conference-left$", out, re.MULTILINE))
        == CROWD
    )
    assert f"{CROWD} calls; 'callyard audit call CALL_ID'" in out


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("audit", "call", "gw-1/1.0"), 4, "call gw-1/1.0: no such call"),
        (("audit", "conference", "69999"), 4, "holds nothing of conference 69999"),
        (("audit", "conference", "69999", "--from", "-3h", "--to", "-2h"), 3, "its oldest record is of"),
        (("audit", "call", "--conference", "69998"), 4, "no such call"),
        (("audit", "node", "node-9"), 4, "node node-9: nothing is said of it"),
        (("audit", "call", "--conference", CROWDED, "--to", "-1h"), 3, "its oldest record is of"),
        (("audit", "call", "--conference", CROWDED, "--from", "2026-01-01T00:00:00"), 2, "names no zone"),
        (("table", "--as-of", "-1h"), 3, "its oldest record is of"),
        (("export", "calls", "--to", "-1h"), 3, "its oldest record is of"),
        (("audit", "forget", "+4900000"), 4, "no topic holds it"),
    ],
)
def test_what_is_not_there_is_said_with_a_status_of_its_own(run: Any, words: list[str], status: int, said: str) -> None:
    found, out, err = run(*words)
    assert (found, out) == (status, "")
    assert said in err
    assert "Traceback" not in err


# --- the sides --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "name", "counts", "ends"),
    [
        ("conference", CROWDED, {"parked": CROWD, "connected": CROWD, "left": CROWD}, {"conference-left": CROWD}),
        ("conference", NOBODYS, {"parked": 1, "left": 1}, {"hangup": 1}),
        ("node", "node-1", {"connected": CROWD + 1, "registered": 2}, {"conference-left": CROWD + 1}),
        ("gateway", "gw-1", {"parked": CROWD + 2, "connected": CROWD + 1, "left": CROWD + 2}, {"hangup": 1}),
    ],
)
def test_each_side_tells_and_counts(
    run: Any, side: str, name: str, counts: dict[str, int], ends: dict[str, int]
) -> None:
    status, out, err = run("audit", side, name, "--json")
    assert status == 0, err
    *happenings, totals = [json.loads(line) for line in out.splitlines()]
    found = Counter(h["what"] for h in happenings)
    for what, count in counts.items():
        assert totals["totals"]["counts"][what] == found[what] == count
    assert totals["totals"]["ends"].items() >= ends.items()
    assert [h["decided_ms"] for h in happenings] == sorted(h["decided_ms"] for h in happenings)
    status, out, _ = run("audit", side, name)
    assert status == 0
    assert f"parked {counts['parked']}" in out if "parked" in counts else "parked" not in out


def test_a_node_tells_the_dials_that_it_did_not_take(run: Any) -> None:
    status, out, _ = run("audit", "node", "node-2", "--json")
    assert status == 0
    totals = json.loads(out.splitlines()[-1])["totals"]
    assert totals["failures"] == {"unreachable": totals["counts"]["failed"]}
    assert "connected" not in totals["counts"]


# --- the table --------------------------------------------------------------------------------------------------------


async def test_the_table_of_a_moment_is_the_one_that_the_stream_had_then(day: Day) -> None:
    settings = load(KafkaSettings, PolicySettings, environment=environment(day))
    folded = await past(settings, day.full_ms)
    assert folded == await past(settings, day.full_ms, whole=True)
    assert folded.callers == day.table.callers
    assert Counter(c.conference for c in folded.callers) == {CROWDED: CROWD, HERS: 1}
    assert {c.state for c in folded.callers} == {StayState.CONNECTED.value}
    assert {(r.conference, r.node_id) for r in folded.registrations} == {
        (r.conference, r.node_id) for r in day.table.registrations
    } == {(CROWDED, "node-1"), (HERS, "node-1"), (HERS, "node-2")}  # fmt: skip
    before = await past(settings, day.before_ms)
    assert [(c.conference, c.state) for c in before.callers] == [(HERS, "parked")]
    assert before.registrations == ()
    assert (await past(settings, day.after_ms)).callers == ()


def environment(day: Day) -> dict[str, str]:
    return {"CALLYARD_KAFKA_BOOTSTRAP_SERVERS": day.settings.bootstrap_servers}


def at(ms: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(ms / 1000)) + f".{ms % 1000:03}Z"


def test_two_moments_are_compared(run: Any, day: Day) -> None:
    found = told(run("table", "--diff", at(day.before_ms), at(day.full_ms), "--json"))["differences"]
    kinds = Counter((d["change"], d["kind"]) for d in found)
    assert kinds == {("appeared", "registration"): 3, ("appeared", "caller"): CROWD, ("changed", "caller"): 1}
    [she] = [d for d in found if d["change"] == "changed"]
    assert {"state", "attempt", "node_id"} <= set(she["fields"])
    status, out, _ = run("table", HERS, "--as-of", at(day.full_ms))
    assert status == 0
    assert "2 registrations, 1 callers connected" in out
    status, out, _ = run("table")
    assert status == 0
    assert "no callers" in out


# --- exports ----------------------------------------------------------------------------------------------------------


def test_each_format_holds_the_same_calls(run: Any, tmp_path: Path) -> None:
    for form in ("jsonl", "csv", "parquet"):
        status, _, err = run("export", "calls", "--out", str(tmp_path / f"calls.{form}"))
        assert status == 0
        assert f"{CROWD + 2} rows" in err
    lines = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    assert len(lines) == CROWD + 2
    names = [column.name for column in CallRows.columns]
    assert all(list(line) == names for line in lines)
    assert all(line["complete"] and line["ended_at"] for line in lines)
    spent = [name for name in names if name.startswith("waited_") and name != "waited_ms"]
    assert all(sum(line[name] for name in spent) == line["waited_ms"] for line in lines)
    [hers] = [line for line in lines if line["conference"] == HERS]
    assert (hers["outcome"], hers["node_id"], hers["registered_at_entry"]) == ("conference-left", "node-1", False)
    assert hers["failed_dials"] >= 1
    assert hers["last_failure"].startswith("unreachable")
    with (tmp_path / "calls.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [
            {name: "" if value is None else str(value) for name, value in line.items()} for line in lines
        ]
    table = pq.read_table(tmp_path / "calls.parquet")
    assert table.column_names == names
    assert [
        {
            name: at(int(value.timestamp() * 1000 + 0.5)) if name.endswith("_at") and value else value
            for name, value in row.items()
        }
        for row in table.to_pylist()
    ] == lines


async def test_an_export_keeps_nothing_of_what_is_over(day: Day) -> None:
    rows = CallRows(0)
    made = 0
    async with journal(day.settings, Span(), before_ms=0, unreadable=Unreadable.FAIL) as found:
        async for one in found.told():
            made += len(list(rows.take(one)))
    assert made == CROWD + 2
    assert rows._gathering.stories == {}
    assert not any(rows._gathering._at.values())


def test_the_questions_of_the_docs_have_answers(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for what in ROWS:
        assert run("export", what.value, "--out", str(tmp_path / f"{what.value}.parquet"))[0] == 0
    monkeypatch.chdir(tmp_path)
    questions = re.findall(r"```sql\n(.*?)```", (DOCS / "audit.md").read_text(), re.DOTALL)
    assert len(questions) >= 10
    for question in questions:
        answer = duckdb.sql(question)
        assert answer is not None
        assert answer.fetchall(), question


def test_the_docs_name_every_column(run: Any) -> None:
    page = (DOCS / "audit.md").read_text()
    for what, rows in ROWS.items():
        _, out, _ = run("export", what.value, "--columns")
        for column in rows.columns:
            assert f"| `{column.name}` | {column.meaning} |" in page
            assert column.name in out


# --- privacy ----------------------------------------------------------------------------------------------------------


def test_what_is_erased_is_gone_and_what_remains_is_said(run: Any) -> None:
    number = "+4930999"
    found = told(run("audit", "forget", number, "--json"))
    held = {one["topic"].rsplit(".", 1)[-1]: one for one in found["topics"]}
    assert found["forms"] == sorted(numbers.forms(number, KEY))
    assert held["calls"]["records"] >= 1
    assert held["journal"]["records"] >= 2
    assert held["calls"]["gone_by_ms"] > now_ms() + 29 * 86_400_000
    assert held["rejected"]["records"] == 0
    assert found["erased"] == {}
    erased = told(run("audit", "forget", number, "--erase", "--yes", "--json"))["erased"]
    assert {topic.rsplit(".", 1)[-1] for topic in erased} == {"calls", "journal"}
    again = told(run("audit", "forget", number, "--json"))
    left = {one["topic"].rsplit(".", 1)[-1]: one["records"] for one in again["topics"] if one["records"]}
    assert set(left) == {"callyard-stream-desks-changelog"}
    assert run("audit", "call", "--caller", number)[0] == 4
    status, out, _ = run("audit", "forget", number)
    assert status == 0
    assert "What this can't do" in out
