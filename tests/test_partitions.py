"""Another number of partitions: the procedure of docs/scale.md, on real parts, with callers who wait and who talk."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from callyard.kafka import embedded
from callyard.parts import asterisk, sipp
from callyard.parts.cluster import hook_environment
from callyard.parts.freeswitch import FreeSwitch
from callyard.processes import Child, worker
from callyard.records import CallerConnected, CallRecord
from callyard.settings import KafkaSettings
from tests.conftest import unique_settings
from tests.support import kafka as on_kafka
from tests.support.agent import agent, has, running, said
from tests.support.asterisk import conference_number
from tests.support.streams import decisions, instructions, journal, stream_worker
from tests.support.wait import until

pytestmark = [pytest.mark.kafka, pytest.mark.asterisk, pytest.mark.timeout(180)]


def workers(
    settings: KafkaSettings, gateway: asterisk.Gateway, control: FreeSwitch, node: sipp.Node, folder: Path
) -> list[Child]:
    """A stream, an agent and a hook with these settings."""
    hook = {**on_kafka.environment(settings), **hook_environment("node-1", control, node)}
    return [
        stream_worker(settings, folder / "stream.log"),
        agent(settings, gateway.ami, folder / "agent.log"),
        worker("hook", environment=hook, log=folder / "hook.log"),
    ]


async def test_callers_live_on_when_the_number_of_partitions_is_changed(
    kafka: embedded.EmbeddedKafka, gateway: asterisk.Gateway, tmp_path: Path
) -> None:
    talks, waits = conference_number(), conference_number()
    old, new = unique_settings(kafka, partitions=2), unique_settings(kafka, partitions=5)
    calls = [sipp.Call(f"+4930123456{n}", f"{number}#") for n, number in enumerate((talks, waits))]
    async with contextlib.AsyncExitStack() as stack:
        for settings in (old, new):
            await on_kafka.create_topics(settings)
            stack.push_async_callback(on_kafka.delete_topics, settings)
        control = await stack.enter_async_context(FreeSwitch())
        node = await stack.enter_async_context(sipp.node(tmp_path / "node"))
        callers = await stack.enter_async_context(
            sipp.calling(tmp_path / "callers", (gateway.sip_host, gateway.sip_port), calls)
        )
        control.open(talks)
        async with running(*workers(old, gateway, control, node, tmp_path / "old")):
            await said(old, talks, has("caller-connected"))
            await said(old, waits, has("caller-parked"))
        async with running(*workers(new, gateway, control, node, tmp_path / "new")):
            control.open(waits)
            await until(lambda: len(node.talking()) == 2, 30, "who waited is put through by the new workers")
            records: list[CallRecord] = await said(new, talks, has("caller-connected"))
            assert [type(r) for r in records if r.type == "caller-connected"] == [CallerConnected]
            assert {i.conference for i in await instructions(new)} == {waits}, "who talks is left alone"
            assert [event.conference for event in node.events("called")] == [talks, waits], "nobody is dialled twice"
            entries = decisions(await journal(new))
            assert {e.conference for e in entries if e.event_type == "conference-registered"} == {talks, waits}
        assert len(callers.talking()) == 2
