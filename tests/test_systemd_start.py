"""What the units start, started as they say: ready when it is, fed to the watchdog, ended within its time."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from callyard.cache import cache_folder
from callyard.parts.freeswitch import FreeSwitch
from callyard.processes import Child, free_port
from callyard.settings import KafkaSettings
from tests.support import kafka as on_kafka
from tests.support.ami import SECRET, ami_double
from tests.support.probes import probe
from tests.support.systemd import Systemd, systemd
from tests.support.units import Unit

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]

PASSWORD = "ClueCon"


@asynccontextmanager
async def started(
    unit: Unit, directory: Path, secrets: dict[str, str], more: dict[str, str]
) -> AsyncIterator[tuple[Systemd, Child]]:
    """The unit's program, under a systemd that watches it more closely than the unit says."""
    directory.mkdir()
    async with systemd(directory) as found:
        watched = {**found.environment, "WATCHDOG_USEC": "3000000"}
        child = unit.child(directory, secrets, {**more, **watched, "CALLYARD_LOG_FORMAT": "json"})
        child.start()
        try:
            yield found, child
        finally:
            await child.stop(float(unit.one("TimeoutStopSec")))


async def says(found: Systemd, *words: str) -> None:
    """Wait until the present status has all of these words."""
    while not all(word in ([m["STATUS"] for m in found.messages if "STATUS" in m] or [""])[-1] for word in words):
        await found.until("STATUS")


async def ends_in_order(unit: Unit, found: Systemd, child: Child) -> None:
    began = time.monotonic()
    child.send_signal(signal.SIGTERM)
    await found.until("STOPPING")
    assert await asyncio.wait_for(child.wait(), float(unit.one("TimeoutStopSec"))) == 0
    print(f"{unit.name} ended after {time.monotonic() - began:.2f} s")  # noqa: T201 - a figure to read


async def stands_still_unseen_by_nobody(found: Systemd, child: Child) -> None:
    child.send_signal(signal.SIGSTOP)
    assert await found.silent(4)
    child.send_signal(signal.SIGCONT)
    await found.until("WATCHDOG")


async def test_two_streams_of_one_machine_and_one_is_restarted_while_the_other_serves(
    kafka_settings: KafkaSettings, tmp_path: Path
) -> None:
    units = [Unit("callyard-stream@.service", str(free_port())) for _ in range(2)]
    more = on_kafka.environment(kafka_settings)
    async with (
        started(units[0], tmp_path / "1", {}, more) as (first, one),
        started(units[1], tmp_path / "2", {}, more) as (second, two),
    ):
        for found, unit in ((first, units[0]), (second, units[1])):
            before = await found.until("READY")
            assert before[-1]["STATUS"].startswith("decides for ")
            assert all("missing" in message["STATUS"] for message in before[:-1] if "STATUS" in message)
            assert (await probe(int(unit.instance), "/readyz"))[0] == 200
            await found.until("WATCHDOG")
        await ends_in_order(units[0], first, one)
        await says(second, "decides for 3 partitions")
        assert (await probe(int(units[1].instance), "/readyz"))[0] == 200
        one.start()
        await first.until("READY")
        await stands_still_unseen_by_nobody(first, one)
        await ends_in_order(units[1], second, two)


async def test_the_agent_is_ready_once_asterisk_is_there(kafka_settings: KafkaSettings, tmp_path: Path) -> None:
    unit, port = Unit("callyard-agent.service"), free_port()
    more = {
        **on_kafka.environment(kafka_settings), "CALLYARD_AMI_PORT": str(port),
        "CALLYARD_AMI_RECONNECT_MAX_SECONDS": "0.5", "CALLYARD_HEALTH_PORT": str(free_port()),
    }  # fmt: skip
    async with started(unit, tmp_path / "agent", {"ami-secret": SECRET}, more) as (found, child):
        await says(found, "Asterisk's calls are known")
        await found.until("WATCHDOG")
        async with ami_double(port):
            assert (await found.until("READY"))[-1]["STATUS"] == "speaks for its gateway"
        # An outage of Asterisk is told, and is no fault of the agent.
        await says(found, "Asterisk's calls are known")
        await found.until("WATCHDOG")
        await stands_still_unseen_by_nobody(found, child)
        await ends_in_order(unit, found, child)


async def test_the_hook_is_ready_once_its_conferences_are_registered(
    kafka_settings: KafkaSettings, tmp_path: Path
) -> None:
    unit = Unit("callyard-hook.service")
    async with FreeSwitch() as freeswitch:
        more = {
            **on_kafka.environment(kafka_settings), "CALLYARD_ESL_PORT": str(freeswitch.port),
            "CALLYARD_HEALTH_PORT": str(free_port()),
        }  # fmt: skip
        async with started(unit, tmp_path / "hook", {"esl-password": PASSWORD}, more) as (found, child):
            await found.until("READY")
            await found.until("WATCHDOG")
            await ends_in_order(unit, found, child)


async def test_a_site_is_ready_with_its_stream_and_ends_kafka_last(tmp_path: Path) -> None:
    unit, port, ami_port = Unit("callyard-up.service"), free_port(), free_port()
    secrets = {"ami-secret": SECRET, "esl-password": PASSWORD}
    async with FreeSwitch() as freeswitch:
        more = {
            "CALLYARD_CACHE": str(cache_folder()), "CALLYARD_KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{port}",
            "CALLYARD_KAFKA_PARTITIONS": "2", "CALLYARD_ESL_PORT": str(freeswitch.port),
            "CALLYARD_AMI_PORT": str(ami_port), "CALLYARD_AMI_RECONNECT_MAX_SECONDS": "0.5",
            "CALLYARD_HEALTH_PORT": "0",
        }  # fmt: skip
        async with started(unit, tmp_path / "up", secrets, more) as (found, child):
            ready = (await found.until("READY", 60))[-1]
            assert "stream: decides for 2 partitions" in ready["STATUS"]
            # Its Asterisk is away, which is no reason to end the others.
            await says(found, "agent: missing: Asterisk", "hook: following")
            async with ami_double(ami_port):
                await says(found, "agent: speaks for its gateway", "hook: following", "stream: decides")
                await found.until("WATCHDOG")
                await ends_in_order(unit, found, child)
        said = child.lines()
        assert said[-1] == "kafka   ended"
        assert {line for line in said if line.endswith(" ended")} == {
            f"{name:<7} ended" for name in ("stream", "agent", "hook", "kafka")
        }
        assert (tmp_path / "up" / "callyard" / "kafka" / "records").is_dir()
