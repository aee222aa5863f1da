"""docs/states.md is what the tables say."""

from __future__ import annotations

from pathlib import Path

from streams.state_diagram import page


def test_the_page_of_states_does_not_drift() -> None:
    written = Path(__file__).parent.parent / "docs" / "states.md"
    assert written.read_text(encoding="utf-8") == page(), "run 'make docs'"
