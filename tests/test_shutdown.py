"""SIGTERM: each worker ends in order and in time; what is in flight is finished, or handed to who comes next."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from callyard.kafka import embedded
from callyard.parts import asterisk, sipp
from callyard.parts.freeswitch import FreeSwitch
from callyard.processes import Child
from callyard.records import CALLS, CallerParked, CallRecord, parse
from callyard.settings import KafkaSettings
from callyard.topics import topics
from tests.conftest import unique_settings
from tests.support import kafka as on_kafka
from tests.support.agent import agent, dial, instruct, logged, running
from tests.support.ami import ami_double
from tests.support.asterisk import conference_number
from tests.support.hook import hook, registrations
from tests.support.proxy import ami_proxy
from tests.support.streams import stream_worker
from tests.support.wait import until

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]

CALLERS = 20


async def all_said(settings: KafkaSettings) -> list[CallRecord]:
    return [parse(CALLS, record.value) for record in await on_kafka.read(settings, topics(settings).calls.name)]


@pytest.mark.asterisk
async def test_an_agent_that_ends_among_its_redirects_leaves_none_half_done(
    kafka_settings: KafkaSettings, gateway: asterisk.Gateway, tmp_path: Path
) -> None:
    conference = conference_number()
    first = agent(kafka_settings, gateway.ami, tmp_path / "first")
    second = agent(kafka_settings, gateway.ami, tmp_path / "second")
    calls = [sipp.Call(f"+49301{number:06}", f"{conference}#") for number in range(CALLERS)]
    entrance = (gateway.sip_host, gateway.sip_port)
    async with sipp.node(tmp_path) as node, running(first, second):
        assert (await first.ready(1))["role"] == "owner"
        async with sipp.calling(tmp_path, entrance, calls, rate=50) as callers:

            async def parked() -> dict[str, CallRecord]:
                records = await all_said(kafka_settings)
                return {r.call_id: r for r in records if isinstance(r, CallerParked) and r.conference == conference}

            await until(lambda: everyone(parked), what="all callers parked")
            waiting = await parked()
            await instruct(kafka_settings, *(dial(call, node.uri(conference)) for call in waiting.values()))
            await until(lambda: logged(first, "redirect accepted"), what="the first redirect")
            assert await first.stop(grace=10) == 0
            done = {fields["call_id"] for fields in logged(first, "redirect accepted")}
            await until(lambda: len(node.talking()) == CALLERS, 30, lambda: f"{len(node.talking())} talk")

            def again() -> set[str]:
                return {fields["call_id"] for fields in logged(second, "redirect accepted")}

            # Who talks was redirected; that Asterisk has accepted it, the agent hears a moment later.
            await until(lambda: done | again() == set(waiting), what="all redirects accepted")
            assert not done & again(), "nothing is written twice"
            assert len(node.events("called")) == CALLERS
            assert len(callers.talking()) == CALLERS
    assert [fields["seconds"] < 5 for fields in logged(first, "stopped")] == [True]


async def everyone(parked: object) -> bool:
    return len(await parked()) == CALLERS  # type: ignore[operator]


@pytest.mark.asterisk
async def test_an_agent_whose_asterisk_does_not_answer_breaks_off_before_it_leaves_its_group(
    kafka_settings: KafkaSettings, gateway: asterisk.Gateway, tmp_path: Path
) -> None:
    conference = conference_number()
    async with ami_proxy(gateway.ami) as proxy, sipp.node(tmp_path) as node:
        child = agent(kafka_settings, proxy.settings, tmp_path / "log")
        calls = [sipp.Call("+4930123456", f"{conference}#")]
        async with running(child), sipp.calling(tmp_path, (gateway.sip_host, gateway.sip_port), calls):
            await until(lambda: logged(child, "record delivered"), what="the caller told")
            [call] = [record for record in await all_said(kafka_settings) if record.conference == conference]
            proxy.hold()
            await instruct(kafka_settings, dial(call, node.uri(conference)))
            await until(lambda: proxy.changes, what="the redirect written")
            began = time.monotonic()
            assert await child.stop(grace=10) == 0
            assert time.monotonic() - began < 5
    events = [line for line in child.lines() if "breaking off" in line or "no session with Asterisk" in line]
    assert "breaking off" in events[0]


async def test_a_worker_that_kafka_keeps_waiting_ends_within_its_grace(tmp_path: Path) -> None:
    async with embedded.running(tmp_path / "kafka") as kafka, ami_double() as ami, FreeSwitch() as freeswitch:
        settings = unique_settings(kafka)
        await on_kafka.create_topics(settings)
        grace = {"HEALTH_GRACE_SECONDS": "6"}
        workers = [
            stream_worker(settings, tmp_path / "stream.log", **grace),
            agent(settings, ami.settings(), tmp_path / "agent.log", **grace),
            hook(settings, freeswitch.port, tmp_path / "hook.log", **grace),
        ]
        async with running(*workers):
            freeswitch.open("41111")
            await registrations(settings, 1)
            await kafka.kill()
            freeswitch.open("42222")
            took = await asyncio.gather(*(seconds_to_end(worker) for worker in workers))
        assert max(took) < 9, took
        # 75: the grace was over. Nothing of it is lost: what Kafka didn't take is said anew by the next one.
        assert {worker.exit_status for worker in workers} <= {0, 70, 75}
        print("ended without Kafka after", [round(seconds, 2) for seconds in took])  # noqa: T201 - a figure to read


async def seconds_to_end(worker: Child) -> float:
    began = time.monotonic()
    await worker.stop(grace=20)
    return time.monotonic() - began
