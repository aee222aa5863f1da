"""``python -m bench.soak``: conferences come and go, a hundred a second, and the hook's memory must stay flat.

A real ``callyard hook`` between FreeSWITCH's double and an embedded Kafka. Each conference lives some seconds. In the
middle Kafka can be made to stand still, so that what waits for it shows, too. The figures are printed as JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import urllib.request
from collections import deque
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
import uvloop

from bench.hook import rss_kb
from callyard.errors import CommandError
from callyard.kafka import embedded
from callyard.parts.freeswitch import FreeSwitch
from callyard.processes import Child, free_port, worker
from callyard.settings import KafkaSettings
from callyard.topics_command import ensure

FIRST_NUMBER = 10_000
NUMBERS = 80_000
STEP_SECONDS = 0.05
SETTLE_SECONDS = 60.0
WARM = 0.25
"""The share of the time after which memory counts: what is remembered of ended conferences has filled by then."""


async def soak(seconds: float, rate: float, life: float, away: float, folder: Path) -> dict[str, Any]:
    """Churn for so long; returns the figures. Raises `CommandError` where the hook ends, or says what isn't so."""
    async with contextlib.AsyncExitStack() as stack:
        kafka = await stack.enter_async_context(embedded.running(folder / "kafka"))
        settings = KafkaSettings(bootstrap_servers=kafka.bootstrap_servers, topic_prefix="soak", partitions=12)
        await ensure(settings)
        double = await stack.enter_async_context(FreeSwitch())
        metrics = free_port()
        child = _hook(settings, double.port, metrics, folder)
        child.start()
        try:
            await asyncio.wait_for(double.subscribers(), 30)
            return await _churn(double, child, metrics, kafka.pid, seconds, rate, life, away)
        finally:
            await child.stop()


def _hook(kafka: KafkaSettings, port: int, metrics: int, folder: Path) -> Child:
    return worker(
        "hook",
        environment={
            "CALLYARD_NODE_ID": "soak", "CALLYARD_NODE_SIP_URI": "sip:{conference}@192.0.2.7",
            "CALLYARD_ESL_PORT": str(port), "CALLYARD_ESL_PASSWORD": "ClueCon",
            "CALLYARD_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "CALLYARD_KAFKA_TOPIC_PREFIX": kafka.topic_prefix, "CALLYARD_KAFKA_PARTITIONS": str(kafka.partitions),
            "CALLYARD_HEALTH_PORT": str(metrics), "CALLYARD_LOG_LEVEL": "warning",
        },
        log=folder / "hook.log",
    )  # fmt: skip


async def _churn(
    double: FreeSwitch, child: Child, metrics: int, kafka: int, seconds: float, rate: float, life: float, away: float
) -> dict[str, Any]:
    living: deque[tuple[float, str]] = deque()
    samples: list[tuple[float, int]] = []
    opened, most_waiting, stands_still = 0, 0, False
    began = time.monotonic()
    try:
        while (passed := time.monotonic() - began) < seconds:
            while opened < passed * rate:
                instance = double.open(str(FIRST_NUMBER + opened % NUMBERS)).instance
                living.append((passed + life, instance))
                opened += 1
            while living and living[0][0] <= passed:
                double.close(living.popleft()[1])
            if away and stands_still != (seconds * 0.4 <= passed < seconds * 0.4 + away):
                stands_still = not stands_still
                os.kill(kafka, signal.SIGSTOP if stands_still else signal.SIGCONT)
            if not samples or passed - samples[-1][0] >= 1:
                if not child.running:
                    raise CommandError(f"the hook ended{child.tail()}")
                samples.append((passed, rss_kb(child.pid)))
                if stands_still:
                    most_waiting = max(most_waiting, int((await _metrics(metrics))["callyard_hook_waiting"]))
            await asyncio.sleep(STEP_SECONDS)
    finally:
        if stands_still:
            os.kill(kafka, signal.SIGCONT)
    settled = await _settled(child, metrics, len(living))
    return _figures(samples, settled, opened, seconds) | ({"most waiting": most_waiting} if away else {})


async def _settled(child: Child, metrics: int, living: int) -> dict[str, float]:
    """Wait until Kafka was told of everything, and the hook knows as many conferences as there are."""

    async def told() -> bool:
        found = await _metrics(metrics)
        return found["callyard_hook_waiting"] == 0 and found["callyard_hook_conferences"] == living

    await child.until(told, SETTLE_SECONDS, f"through, with {living} conferences registered")
    return await _metrics(metrics)


async def _metrics(port: int) -> dict[str, float]:
    def fetch() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
            return str(response.read().decode())

    text = await asyncio.to_thread(fetch)
    found = re.findall(r'^(callyard_\w+(?:\{le="[^"]+"\})?) (\S+)$', text, re.MULTILINE)
    return {name: float(value) for name, value in found}


def _figures(
    samples: list[tuple[float, int]], metrics: dict[str, float], opened: int, seconds: float
) -> dict[str, Any]:
    warm = [(at, kb) for at, kb in samples if at >= seconds * WARM]
    count = metrics["callyard_hook_delivery_seconds_count"]
    buckets = [
        (float(name.partition('le="')[2].partition('"')[0]), value)
        for name, value in metrics.items()
        if name.startswith("callyard_hook_delivery_seconds_bucket")
    ]

    def within(share: float) -> float:
        return 1000 * min(bound for bound, value in buckets if value >= share * count)

    return {
        "seconds": round(seconds), "conferences": opened, "conferences a second": round(opened / seconds, 1),
        "events": int(metrics["callyard_hook_events_total"]), "changes delivered": int(count),
        "delivered: p50 within ms": within(0.5), "delivered: p99 within ms": within(0.99),
        "MB at the start": round(samples[0][1] / 1000, 1), "MB when warm": round(warm[0][1] / 1000, 1),
        "MB at the end": round(warm[-1][1] / 1000, 1), "MB at most": round(max(kb for _, kb in samples) / 1000, 1),
        "MB an hour, once warm": round(_slope(warm) * 3.6, 2),
    }  # fmt: skip


def _slope(samples: list[tuple[float, int]]) -> float:
    """Of a straight line through them (least squares): kB a second."""
    mean_at = sum(at for at, _ in samples) / len(samples)
    mean_kb = sum(kb for _, kb in samples) / len(samples)
    spread = sum((at - mean_at) ** 2 for at, _ in samples)
    return sum((at - mean_at) * (kb - mean_kb) for at, kb in samples) / spread if spread else 0.0


def command(
    seconds: Annotated[float, typer.Option(min=2, help="How long.")] = 600,
    rate: Annotated[float, typer.Option(min=1, max=1000, help="Conferences that begin in a second.")] = 100,
    life: Annotated[float, typer.Option(min=0, help="Seconds that a conference lives.")] = 5,
    away: Annotated[float, typer.Option(min=0, help="Seconds for which Kafka stands still in between.")] = 0,
) -> None:
    """Churn conferences through a real hook, and print what it took."""
    folder = Path(tempfile.mkdtemp(prefix="callyard-soak-"))
    found = uvloop.run(soak(seconds, rate, life, away, folder))
    shutil.rmtree(folder)
    sys.stdout.buffer.write(orjson.dumps(found, option=orjson.OPT_INDENT_2) + b"\n")


if __name__ == "__main__":
    typer.run(command)
