"""What a worker tells systemd, over a real socket, and when the hook does."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from callyard.notify import Notifier
from callyard.parts.freeswitch import FreeSwitch
from callyard.processes import Child, worker
from tests.support.hook import NODE
from tests.support.systemd import Systemd, systemd


@pytest_asyncio.fixture(params=["path", "abstract"])
async def listening(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Systemd]:
    async with systemd(tmp_path if request.param == "path" else None) as found:
        yield found


async def test_each_message_is_one_datagram(listening: Systemd) -> None:
    notifier = Notifier(listening.environment)
    notifier.ready("all is well\nREADY=0")
    notifier.alive()
    notifier.status("so so")
    notifier.stopping()
    assert [await listening.receive() for _ in range(4)] == [
        {"READY": "1", "STATUS": "all is well READY=0"},
        {"WATCHDOG": "1"},
        {"STATUS": "so so"},
        {"STOPPING": "1"},
    ]


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_whether_systemd_watches(environment: dict[str, str], seconds: float | None) -> None:
    assert Notifier({"NOTIFY_SOCKET": "/run/notify", **environment}).watchdog_seconds == seconds
    assert Notifier(environment).watchdog_seconds is None


async def test_without_systemd_nothing_is_sent_and_nothing_fails() -> None:
    notifier = Notifier({})
    notifier.ready("well")
    notifier.stopping()
    with pytest.raises(ValueError, match="doesn't watch"):
        await notifier.watch()


def test_a_systemd_that_went_away_is_named_in_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).alive()
    assert "systemd was not told" in capsys.readouterr().out


async def test_a_systemd_that_does_not_read_holds_nothing_up(tmp_path: Path) -> None:
    async with systemd(tmp_path) as found:
        notifier = Notifier(found.environment)
        for _ in range(10_000):  # far beyond what the kernel keeps for a datagram socket
            notifier.alive()
        assert await found.receive() == {"WATCHDOG": "1"}


async def test_the_watchdog_is_fed_while_healthy(tmp_path: Path) -> None:
    async with systemd(tmp_path) as found:
        well = True
        notifier = Notifier({**found.environment, "WATCHDOG_USEC": "30000"})
        watching = asyncio.create_task(notifier.watch(lambda: well))
        assert [await found.receive() for _ in range(3)] == [{"WATCHDOG": "1"}] * 3
        well = False
        assert await found.silent(0.5)
        watching.cancel()


def watched_hook(found: Systemd, freeswitch: FreeSwitch, directory: Path) -> Child:
    """A dry run: it needs no Kafka, and publishes to its standard output."""
    environment = {
        **NODE, **found.environment, "WATCHDOG_USEC": "300000", "CALLYARD_ESL_PORT": str(freeswitch.port),
    }  # fmt: skip
    return worker("hook", "--dry-run", environment=environment, log=directory / "log")


async def test_the_hook_is_ready_once_its_snapshot_is_published_and_says_how_it_goes(tmp_path: Path) -> None:
    async with systemd(tmp_path) as found, FreeSwitch() as freeswitch:
        freeswitch.open("49123")
        freeswitch.answering.clear()
        child = watched_hook(found, freeswitch, tmp_path)
        child.start()
        try:
            assert await found.receive() == {"WATCHDOG": "1"}
            freeswitch.answering.set()
            before = await found.until("READY")
            assert f"following FreeSWITCH at 127.0.0.1:{freeswitch.port}" in [one.get("STATUS") for one in before]
            assert any('"conference":"49123"' in line for line in child.lines())
            freeswitch.kill()
            while "can't be reached" not in (await found.until("STATUS"))[-1]["STATUS"]:
                pass
            await found.until("WATCHDOG")  # an outage of FreeSWITCH is no fault of the hook
            child.send_signal(signal.SIGTERM)
            await found.until("STOPPING")
            assert await child.wait() == 0
        finally:
            await child.stop()


async def test_a_frozen_hook_feeds_no_watchdog(tmp_path: Path) -> None:
    async with systemd(tmp_path) as found, FreeSwitch() as freeswitch:
        child = watched_hook(found, freeswitch, tmp_path)
        child.start()
        try:
            await found.until("READY")
            await found.until("WATCHDOG")
            child.send_signal(signal.SIGSTOP)
            assert await found.silent(1)
            child.send_signal(signal.SIGCONT)
            await found.until("WATCHDOG")
        finally:
            await child.stop()
