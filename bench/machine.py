"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
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
