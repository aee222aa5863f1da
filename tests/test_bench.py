"""The bench works, and its figures are what they say. How fast anything is, no test asserts: see docs/bench.md."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import orjson
import pytest

from bench.ami import Message
from bench.figures import Aim, Spread, aims
from bench.run import PARTS


def test_a_spread_consists_of_measured_values() -> None:
    assert Spread.of(float(value) for value in range(200, 0, -1)) == Spread(200, 100, 190, 198, 200)
    assert Spread.of([7.5]) == Spread(1, 7.5, 7.5, 7.5, 7.5)


def test_nothing_measured_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing was measured"):
        Spread.of([])


def test_an_aim_is_met_at_its_bound() -> None:
    assert Aim("most", 2.0, 2.0).met
    assert not Aim("most", 2.01, 2.0).met
    assert Aim("least", 100, 100, at_least=True).met
    assert not Aim("least", 99.9, 100, at_least=True).met


def test_aims_need_both_figures_of_a_ratio() -> None:
    openings, floor, polling = Spread.of([20.0]), Spread.of([8.0]), Spread.of([5000.0])
    assert [aim.value for aim in aims(openings, floor, polling)] == [2.5, 20.0, 250.0]
    assert [aim.name for aim in aims(openings, None, None)] == ["p99, ms"]
    assert aims(None, floor, polling) == []


def test_a_message_keeps_the_first_of_each_header_and_all_variables() -> None:
    raw = b"Event: DialBegin\r\nUniqueid: 1.2\r\nUniqueid: 3\r\nChanVariable: A=1=2\r\nChanVariable: B="
    message = Message(raw, 5)
    assert (message["Uniqueid"], message["Absent"], message.at_ns) == ("1.2", "", 5)
    assert message.variables == {"A": "1=2", "B": ""}


@pytest.mark.kafka
def test_a_quick_soak_delivers_all_of_it() -> None:
    """It ends with an error unless Kafka was told of each change, and the hook knows what there is."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.soak", "--seconds", "5", "--rate", "60", "--life", "1", "--away", "1"],
        cwd=Path(__file__).parent.parent, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = orjson.loads(done.stdout)
    assert found["conferences"] >= 290
    assert found["events"] >= 2 * found["conferences"]
    assert 20 < found["MB at the end"] < 200, "a process's memory, and not another's"


@pytest.mark.kafka
@pytest.mark.asterisk
def test_a_quick_run_measures_every_part(tmp_path: Path) -> None:
    figures = tmp_path / "bench.json"
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--quick", "--json", str(figures)],
        cwd=Path(__file__).parent.parent, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = orjson.loads(figures.read_bytes())
    parts = found["parts"]
    assert set(parts) == set(PARTS)
    assert [parts[name]["total"]["count"] for name in ("openings", "herd", "floor", "at-once")] == [20] * 4
    assert parts["polling"]["total"]["count"] == 5
    assert parts["hook"]["memory: events"] >= 40_000
    assert parts["hook"]["ESL bytes to Kafka's client, p50, ms"] > 0
    assert parts["audit"]["entries"] > 2_000
    assert parts["audit"]["verified a second"] > 0
    assert parts["audit"]["decided again a second"] > 0
    assert len(found["aims"]) == 5
    for sample in parts["openings"]["samples"]:
        moments = list(sample.values())
        # Asterisk's answer may be read after DialBegin; timestamps of whole milliseconds may be half of one off.
        assert all(later > earlier - 1.0 for earlier, later in pairwise(moments[:4])), sample
        assert sample["dialled"] > sample["redirect written"]
