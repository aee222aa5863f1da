"""Chaos: the schedule and the plan are functions of the seed, and a short run on the real parts ends well."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections import Counter
from pathlib import Path

import orjson
import pytest

from tests.chaos import plan as plans
from tests.chaos.run import Run
from tests.chaos.schedule import AGENTS, OUTSIDE, SESSION_SECONDS, STREAMS, USUAL, Kind, as_json, schedule

ROOT = Path(__file__).parent.parent
FULL = Run.of(1, 30)
SEED = 4
"""Of the short run."""


def test_a_seed_gives_the_same_schedule_byte_for_byte() -> None:
    made = as_json(FULL.faults)
    assert as_json(Run.of(1, 30).faults) == made
    assert as_json(Run.of(2, 30).faults) != made
    # In another process, too: nothing of it hangs on Python's own hashes.
    words = (
        "import sys",
        "from tests.chaos.run import Run, as_json",
        "sys.stdout.buffer.write(as_json(Run.of(1, 30).faults))",
    )
    other = subprocess.run([sys.executable, "-c", "\n".join(words)], cwd=ROOT, capture_output=True, check=True)
    assert other.stdout == made


def test_a_schedule_has_so_many_of_each_kind_in_the_order_of_time() -> None:
    faults = FULL.faults
    assert Counter(fault.kind for fault in faults) == dict.fromkeys(USUAL, 30)
    assert set(USUAL) | OUTSIDE == set(Kind)
    assert [fault.at for fault in faults] == sorted(fault.at for fault in faults)
    assert faults[-1].at / len(faults) == pytest.approx(FULL.mean_seconds, rel=0.15)
    kinds = [fault.kind for fault in faults]
    assert len({tuple(kinds[start : start + 15]) for start in range(0, 450, 15)}) > 20, "in random order"
    brokers = [fault.at for fault in faults if fault.kind is Kind.KILL_BROKER]
    apart = [later - sooner for sooner, later in itertools.pairwise(brokers)]
    assert min(apart) > 0.3 * FULL.mean_seconds * len(USUAL), "spread over the run"


def test_faults_reach_every_target_and_last_as_long_as_they_must() -> None:
    faults = FULL.faults
    lanes = {fault.lane for fault in faults}
    workers = {f"stream-{n + 1}" for n in range(STREAMS)} | {f"agent-{n + 1}" for n in range(AGENTS)}
    links = {f"kafka-stream-{n + 1}" for n in range(STREAMS)} | {f"kafka-agent-{n + 1}" for n in range(AGENTS)}
    edges = {f"ami-{n + 1}" for n in range(AGENTS)} | {
        f"{what}-{n + 1}" for what in ("hook", "esl") for n in range(FULL.nodes)
    }
    assert lanes == workers | links | edges | {"broker"}
    for fault in faults:
        if fault.kind in {Kind.FREEZE_STREAM, Kind.CUT_STREAM}:
            assert fault.seconds > SESSION_SECONDS


def test_no_faults_are_a_schedule_as_well() -> None:
    assert schedule(1, {}, 1.0, 2) == ()


def test_a_plan_has_callers_of_all_sorts_who_come_all_the_time() -> None:
    made = plans.plan(3, callers=600, seconds=720, nodes=3)
    assert made == plans.plan(3, callers=600, seconds=720, nodes=3)
    assert made != plans.plan(4, callers=600, seconds=720, nodes=3)
    assert len({caller.number for caller in made.callers}) == 600
    comes = [caller.comes for caller in made.callers]
    assert comes == sorted(comes)
    assert max(later - sooner for sooner, later in itertools.pairwise(comes)) < 30
    meetings = {meeting.conference: meeting for meeting in made.meetings}
    sorts = Counter(
        "before" if not sessions or caller.comes < sessions[0].opens else "after"
        for caller in made.callers
        for sessions in [meetings[caller.conference].sessions]
    )
    assert min(sorts["before"], sorts["after"]) > 100
    assert 20 < sum(caller.hangs_up is None for caller in made.callers) < 300
    assert all(caller.hangs_up is None or caller.hangs_up > caller.comes for caller in made.callers)
    moved = [
        meeting for meeting in made.meetings
        if any(a.node != b.node for a, b in itertools.pairwise(meeting.sessions))
    ]  # fmt: skip
    assert len(moved) > 10


def test_a_meeting_runs_in_one_place_at_a_time() -> None:
    for meeting in plans.plan(3, callers=600, seconds=720, nodes=3).meetings:
        for before, after in itertools.pairwise(meeting.sessions):
            assert before.closes is not None
            assert before.opens < before.closes <= after.opens


def test_waves_are_all_callers_in_groups_that_come_together() -> None:
    made = plans.plan(3, callers=100, seconds=60, nodes=2)
    waves = made.waves()
    assert [caller for _, wave in waves for caller in wave] == list(made.callers)
    for at, wave in waves:
        assert at == wave[0].comes
        assert wave[-1].comes - at < plans.WAVE_SECONDS


@pytest.mark.kafka
@pytest.mark.asterisk
def test_a_short_run_on_the_real_parts(tmp_path: Path) -> None:
    figures = tmp_path / "chaos.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", "--short", "--seed", str(SEED), "--out", str(figures)],
        cwd=ROOT, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = orjson.loads(figures.read_bytes())
    assert found["good"]
    assert found["faults_by_kind"] == dict.fromkeys([kind.value for kind in USUAL], 1)
    assert found["callers"] == 60
    assert found["legs"] > 10, "somebody was put through"
