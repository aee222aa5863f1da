"""The double of FreeSWITCH says what FreeSWITCH said, with other names; also as a process of its own."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import pytest
from pydantic import SecretStr

from callyard.parts.freeswitch import FreeSwitch
from callyard.settings import EslSettings
from fs_hooks import esl
from fs_hooks.client import UnreachableError, WrongPasswordError, connect
from tests.support.esl import recording
from tests.support.wait import until

ANEW = {"Conference-Name", "Conference-Unique-ID", "Event-Sequence", "Event-Date-Timestamp"}


def settings(port: int, password: str = "ClueCon") -> EslSettings:
    return EslSettings(port=port, password=SecretStr(password))


def unchanged(event: esl.Frame) -> dict[str, str]:
    assert isinstance(event, esl.Event)
    return {name: value for name, value in event.headers.items() if name not in ANEW}


@pytest.mark.parametrize("fmt", ["plain", "json"])
async def test_its_events_are_the_recorded_ones_but_for_what_is_put_in_anew(fmt: str) -> None:
    said: list[esl.Frame] = []
    before_us = time.time_ns() // 1000
    async with FreeSwitch() as freeswitch, connect(settings(freeswitch.port), said.append) as link:
        await link.command("event", fmt, "CUSTOM", "conference::maintenance")
        freeswitch.open("50000", "instance-1")
        freeswitch.close("50000")
        await until(lambda: len(said) == 4)
    recorded = [frame for frame in esl.Reader().feed(recording(f"lifecycle-{fmt}")) if isinstance(frame, esl.Event)]
    assert [unchanged(event) for event in said] == [unchanged(recorded[i]) for i in (0, 1, -2, -1)]
    events = [event for event in said if isinstance(event, esl.Event)]
    assert {event.headers["Conference-Unique-ID"] for event in events} == {"instance-1"}
    assert {event.headers["Conference-Name"] for event in events} == {"50000"}
    sequences = [int(event.headers["Event-Sequence"]) for event in events]
    assert sequences == sorted(set(sequences))
    assert all(before_us <= int(event.headers["Event-Date-Timestamp"]) <= time.time_ns() // 1000 for event in events)


async def test_its_list_has_the_recorded_form() -> None:
    def ignore(_frame: esl.Frame) -> None:
        pass

    async with FreeSwitch() as freeswitch, connect(settings(freeswitch.port), ignore) as link:
        freeswitch.open("50000", "instance-1")
        freeswitch.open("50001", "instance-2")
        listed = json.loads(await link.api("conference", "json_list"))
    responses = [
        frame for frame in esl.Reader().feed(recording("lifecycle-plain")) if isinstance(frame, esl.ApiResponse)
    ]
    [recorded] = json.loads(responses[0].body)
    assert [(entry["conference_name"], entry["conference_uuid"]) for entry in listed] == [
        ("50000", "instance-1"),
        ("50001", "instance-2"),
    ]
    assert all(entry.keys() == recorded.keys() for entry in listed)


async def test_it_runs_as_a_process_that_obeys_lines() -> None:
    said: list[esl.Frame] = []
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "callyard.parts.freeswitch", "--password-env", "OTHER_PASSWORD",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env={"OTHER_PASSWORD": "other"},
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None

    async def answer(line: str = "") -> dict[str, Any]:
        if line:
            process.stdin.write(line.encode() + b"\n")
        return dict(json.loads(await asyncio.wait_for(process.stdout.readline(), 20)))

    try:
        port = (await answer())["port"]
        with pytest.raises(WrongPasswordError):
            async with connect(settings(port), said.append):
                pass
        async with connect(settings(port, "other"), said.append) as link:
            await link.command("event", "plain", "CUSTOM", "conference::maintenance")
            before, opened, after = time.monotonic_ns(), await answer("open 49123 abc-1"), time.monotonic_ns()
            assert opened.items() >= {"did": "open", "conference": "49123", "instance": "abc-1"}.items()
            assert before < opened["monotonic_ns"] < after
            assert abs(opened["wall_ns"] - time.time_ns()) < 20 * 10**9
            assert (await answer("close 49123"))["did"] == "close"
            await until(lambda: len(said) == 4)
        assert "error" in await answer("close 49123")
        assert "error" in await answer("dance")
        process.stdin.close()
        assert await asyncio.wait_for(process.wait(), 20) == 0
        with pytest.raises(UnreachableError):
            async with connect(settings(port, "other"), said.append):
                pass
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
