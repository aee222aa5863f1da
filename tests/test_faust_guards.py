"""The guards fail loudly when Faust changes under them; what they prevent is tried on the real broker elsewhere."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from faust.types import TP

from callyard import fence
from callyard.guards import GuardError
from callyard.settings import KafkaSettings, StreamSettings, load
from streams import faust_guards
from streams.worker import make_app


def test_the_installed_versions_are_those_that_the_guards_were_made_for() -> None:
    faust_guards.check_versions()


def test_another_version_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(faust_guards.PINNED, "faust-streaming", "0.99.0")
    with pytest.raises(GuardError, match=r"faust-streaming is 0\.15\.3, not 0\.99\.0.*install callyard\[stream\]"):
        faust_guards.check_versions()


def test_the_pins_of_the_package_are_those_of_the_guards() -> None:
    project = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    [stream] = re.findall(r"^stream = \[(.*)\]$", project, re.MULTILINE)
    for name, version in faust_guards.PINNED.items():
        assert f'"{name}=={version}"' in stream


def test_an_attribute_that_is_gone_is_named() -> None:
    with pytest.raises(GuardError, match="has no nothing_of_the_kind"):
        fence.patched(object(), "nothing_of_the_kind")


def test_a_stream_makes_no_folder_so_that_its_root_may_be_read_only() -> None:
    app = make_app(load(KafkaSettings, StreamSettings, environment={}), fence.Fence(session_seconds=6))
    app._create_directories()
    assert not app.conf.datadir.exists()
    assert not app.conf.datadir.parent.exists(), "without the guard Faust would make it, or fail"


def test_the_fence_holds_for_four_fifths_of_the_session_since_the_heartbeat_was_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = fence.Fence(session_seconds=6)
    assert not made.holds, "nothing was confirmed yet"
    sent_at = fence.boottime()
    made.confirm(sent_at)
    made.check()
    monkeypatch.setattr(fence, "boottime", lambda: sent_at + 4.7)
    made.check()
    monkeypatch.setattr(fence, "boottime", lambda: sent_at + 4.9)
    with pytest.raises(fence.FencedError, match=r"4\.9 s old \(limit 4\.8 s\)"):
        made.check()
    made.confirm(sent_at - 100)
    assert not made.holds, "an older confirmation proves nothing newer"


def test_the_clock_of_the_fence_counts_suspension() -> None:
    assert abs(fence.boottime() - time.clock_gettime(time.CLOCK_BOOTTIME)) < 1
    assert fence.boottime() >= time.clock_gettime(time.CLOCK_MONOTONIC) - 1


@pytest.mark.parametrize(("generation", "paused"), [(7, 1), (6, 0)])
async def test_changelogs_of_another_generation_are_never_paused(generation: int, paused: int) -> None:
    # A pause that comes late would fall on the next assignment, of which Faust decides what flows.
    changelog = TP("t-desks-changelog", 0)
    calls: list[object] = []
    consumer = SimpleNamespace(
        _coordinator=SimpleNamespace(generation=7),
        assignment=lambda: {faust_guards.driver.ensure_aiokafka_TP(changelog)},
        pause=lambda *tps: calls.extend(tps),
    )

    async def call_thread(work: Callable[[], Awaitable[None]]) -> None:
        await work()

    thread = SimpleNamespace(_ensure_consumer=lambda: consumer, call_thread=call_thread)
    await faust_guards.GuardedThread.pause_in_client(thread, {changelog}, generation)  # type: ignore[arg-type]
    assert len(calls) == paused
