"""How fast a journal is verified and decided again, beside a bare consumer of the same topic; and with what memory.

The journal is what a stream worker made of a backlog. Each reading is a process of its own, as an operator would run
it; its time is that of the reading itself, without the start of Python.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
from typing import Any

import orjson

from callyard.errors import CommandError
from callyard.settings import KafkaSettings
from callyard.topics import topics

Found = tuple[dict[str, Any], float]
"""What a command printed, and the most memory it had, in MB."""


async def audit(settings: KafkaSettings, rounds: int) -> dict[str, Any]:
    """Entries a second of verify and replay, and of a bare consumer; of so many rounds the middle one."""
    journal = topics(settings).journal.name
    bare = [sys.executable, "-m", "bench.bare", journal, str(settings.partitions)]
    verify = [sys.executable, "-m", "callyard.main", "audit", "verify", "--json"]
    replay = [sys.executable, "-m", "callyard.main", "replay", "--json"]
    rates: dict[str, list[float]] = {"bare": [], "verify": [], "replay": []}
    peaks: dict[str, float] = {}
    entries = 0
    for _ in range(rounds):  # in turn, so that what else happens on the machine happens to all
        for name, command, counted in (
            ("bare", bare, "records"), ("verify", verify, "records"), ("replay", replay, "compared"),
        ):  # fmt: skip
            found, peak = await asyncio.to_thread(run, command, settings)
            entries = max(entries, found[counted])
            rates[name].append(found[counted] / found["seconds"])
            peaks[name] = max(peak, peaks.get(name, 0))
    middle = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "entries": entries,
        "a bare consumer, entries a second": round(middle["bare"]),
        "verified a second": round(middle["verify"]),
        "decided again a second": round(middle["replay"]),
        "verify / bare": round(middle["verify"] / middle["bare"], 2),
        "replay / bare": round(middle["replay"] / middle["bare"], 2),
        **{f"most memory of {name}, MB": round(peak) for name, peak in peaks.items()},
    }


def run(command: list[str], settings: KafkaSettings, *, parse: bool = True) -> Found:
    """Run a command of this cluster to its end; ``parse``: what it prints is one JSON object.

    Raises `CommandError` where it fails.
    """
    environment = {
        **os.environ, "CALLYARD_KAFKA_BOOTSTRAP_SERVERS": settings.bootstrap_servers,
        "CALLYARD_KAFKA_TOPIC_PREFIX": settings.topic_prefix,
    }  # fmt: skip
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise CommandError(f"{' '.join(command)} ended with status {process.returncode}: {output.decode():.500}")
    return orjson.loads(output) if parse else {}, usage.ru_maxrss / 1024
