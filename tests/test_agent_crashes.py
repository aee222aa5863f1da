"""An agent's own crashes, and connections that break off, at each step of an instruction, on a real Asterisk.

An instruction is two Setvars and a Redirect. Whatever happens before, inside or after any of them, the caller is
dialled exactly once, ends up in the conference, and the desk is told. The agent is told nothing after the break, not
even the answers to what was done. The stream's part is played here: it issues the next attempt when one has failed.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from callyard.parts import asterisk, sipp
from callyard.records import CallerConnected, CallRecord, DialStarted
from callyard.settings import KafkaSettings
from tests.support.agent import agent, dial, has, instruct, running, said, types
from tests.support.asterisk import conference_number
from tests.support.proxy import Place, Trap, ami_proxy

pytestmark = [pytest.mark.kafka, pytest.mark.asterisk]

STEPS: list[tuple[int, Place]] = [(1, "before"), (1, "after"), (2, "after"), (3, "inside"), (3, "after")]
NAMES = ["before-setvar", "between-setvars", "before-redirect", "inside-redirect", "after-redirect"]


@pytest.mark.parametrize(("number", "place"), STEPS, ids=NAMES)
@pytest.mark.parametrize("crash", ["killed", "cut"])
async def test_a_break_at_any_step_dials_the_caller_once_and_tells_the_desk(
    kafka_settings: KafkaSettings, gateway: asterisk.Gateway, tmp_path: Path, crash: str, number: int, place: Place
) -> None:
    conference = conference_number()
    calls = [sipp.Call("+4930123456", f"{conference}#")]
    async with ami_proxy(gateway.ami) as proxy, sipp.node(tmp_path) as node:
        child = agent(kafka_settings, proxy.settings, tmp_path / "log")
        async with (
            running(child),
            sipp.calling(tmp_path, (gateway.sip_host, gateway.sip_port), calls) as caller,
        ):
            [call] = await said(kafka_settings, conference, has("caller-parked"))
            trap = proxy.trap = Trap(number, place)
            if crash == "killed":
                trap.then = lambda: child.send_signal(signal.SIGKILL)
            wanted = dial(call, node.uri(conference))
            await instruct(kafka_settings, wanted)
            await asyncio.wait_for(trap.sprung.wait(), 20)
            if crash == "killed":
                assert await child.wait() == -signal.SIGKILL
                child.start()
                await child.ready(30)
            # Killed, it reads the instruction again, since nothing was committed. Cut off, it looks what became of it.
            outcome = await said(kafka_settings, conference, has_one_of("caller-connected", "dial-failed"))
            dialled = (number, place) == (3, "after")
            assert ("dial-failed" in types(outcome)) == (crash == "cut" and not dialled)
            if "dial-failed" in types(outcome):
                wanted = dial(call, node.uri(conference), attempt=2)
                await instruct(kafka_settings, wanted)
            records = await said(kafka_settings, conference, has("dial-started", "caller-connected"))
            assert {r.attempt for r in records if isinstance(r, (DialStarted, CallerConnected))} == {wanted.attempt}
            # Issued once more, as where the stream's own crash came in between, it changes nothing.
            told = types(records).count("caller-connected")
            await instruct(kafka_settings, wanted)
            await said(kafka_settings, conference, lambda found: types(found).count("caller-connected") > told)
            assert [event.what for event in node.events()] == ["called", "answered"]
            assert len(caller.talking()) == 1


def has_one_of(*wanted: str) -> Callable[[list[CallRecord]], bool]:
    return lambda records: bool(set(wanted) & set(types(records)))
