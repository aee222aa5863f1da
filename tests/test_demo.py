"""The demo as a new user runs it: the whole chain on real parts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from callyard.processes import Child, worker

pytestmark = [pytest.mark.kafka, pytest.mark.asterisk, pytest.mark.timeout(240)]


async def test_the_demo_puts_three_callers_through_and_ends_by_itself(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    demo: Child = worker("demo", "--json", "--keep", str(kept), log=tmp_path / "demo.log")
    demo.start()
    try:
        assert await demo.wait() == 0, demo.tail(40)
    finally:
        await demo.stop()
    told = [json.loads(line) for line in demo.lines() if line.startswith("{")]
    said = [line["what"] for line in told if "what" in line]
    assert sum("the caller is parked" in line for line in said) == 2
    assert [line.split(",")[0] for line in said if "answers: the caller is in" in line] == [
        "node-1 answers: the caller is in 49123",
        "node-1 answers: the caller is in 49123",
        "node-2 answers: the caller is in 45555",
    ]
    assert said[-1].startswith("three callers")
    assert "30123401" not in demo.log.read_text(), "numbers are masked"  # type: ignore[union-attr]
    for log in kept.glob("*.log"):
        content = log.read_text()
        assert "30123401" not in content, f"{log.name} holds a caller's number"
        assert '"exception"' not in content, f"{log.name}: {content}"


async def test_the_demo_says_when_its_folder_is_taken(tmp_path: Path) -> None:
    demo: Child = worker("demo", "--keep", str(tmp_path), log=tmp_path / "demo.log")
    demo.start()
    assert await demo.wait() == 1
    assert "it exists already" in demo.tail()
