"""What the figures were measured on, and how busy it was meanwhile."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from callyard import __version__
from callyard.kafka import jars
from callyard.parts import prepare


def facts() -> dict[str, Any]:
    """The machine, and how busy it was before the run."""
    return {
        "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _cpu(),
        "load average": [round(value, 2) for value in os.getloadavg()],
        "callyard": __version__,
        "kafka": jars.KAFKA_VERSION,
        "asterisk": prepare.found().version.removeprefix("Asterisk "),
        "python": platform.python_version(),
        "kernel": platform.release(),
    }


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


class Meter:
    """How busy the machine was from its making to `read`: figures of a machine that others use, too, are worth less."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = {"bench": os.getpid(), **pids}
        self._began = self._now()

    def read(self) -> dict[str, Any]:
        """Percent of one core for each process; of all cores; and of the time in which somebody waited for a core."""
        before, now = self._began, self._now()
        share = {name: 100 * (now[name] - before[name]) / (now["seconds"] - before["seconds"]) for name in now}
        found = {name: round(share[name]) for name in self._pids}
        return {"percent of a core": found, "all cores": round(share["busy"]), "waited": round(share["waited"])}

    def _now(self) -> dict[str, float]:
        return {
            "seconds": time.monotonic(), "busy": _busy_seconds(), "waited": _waited_seconds(),
            **{name: _cpu_seconds(pid) for name, pid in self._pids.items()},
        }  # fmt: skip


def _cpu_seconds(pid: int) -> float:
    # utime and stime, fields 14 and 15 of proc_pid_stat(5); the second field may hold blanks.
    fields = Path("/proc", str(pid), "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _busy_seconds() -> float:
    # The first line of proc_stat(5): user, nice, system, idle, iowait, irq, softirq, …
    numbers = [int(word) for word in Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:8]]
    return (sum(numbers) - numbers[3] - numbers[4]) / os.sysconf("SC_CLK_TCK")


def _waited_seconds() -> float:
    """Time in which at least one task waited for a core (pressure stall information); 0 where the kernel has none."""
    try:
        some = Path("/proc/pressure/cpu").read_text(encoding="ascii").split("\n", 1)[0]
    except OSError:
        return 0.0
    return int(some.rpartition("total=")[2]) / 1e6
