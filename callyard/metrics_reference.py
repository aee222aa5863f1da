"""The reference of all metrics (docs/metrics.md), made from the metrics that the workers declare.

A test fails when the page differs from them, and where a label isn't described here: each has a bounded set of values.
"""

from __future__ import annotations

import importlib
from typing import NamedTuple

from prometheus_client import REGISTRY
from prometheus_client.metrics import MetricWrapperBase

WORKERS = {"stream": "streams.command", "agent": "agents.command", "hook": "fs_hooks.command"}
"""The command module of each worker: importing it declares all of the worker's metrics."""

LABELS = {
    "callyard_rejected": {"source": "`ami`, `esl`, or the topic's name"},
    "callyard_sent": {"topic": "the topic's name", "type": "the record's type ([schema.json](schema.json))"},
    "callyard_refused": {"resource": "the topic's or group's name"},
    "callyard_build": {},
    "callyard_stream_decisions": {
        "type": "the record's type, or `unreadable`",
        "outcome": "the transition's name ([states.md](states.md)), or `rejected`",
    },
    "callyard_stream_instructions": {"type": "`dial-instruction`, `tell-instruction`"},
    "callyard_stream_leases_expired": {"of": "`registration`, `call`"},
    "callyard_stream_callers": {"state": "`parked`, `dialing`, `connected`"},
    "callyard_stream_lag": {"topic": "the input's name"},
    "callyard_stream_input_holes": {"topic": "the input's name"},
    "callyard_stream_inputs_removed": {"topic": "the input's name"},
    "callyard_stream_inputs_shorter": {"topic": "the input's name"},
    "callyard_agent_again": {"outcome": "`asked`, `not-waiting`, `not-speaking`, `bad-channel`"},
    "callyard_agent_calls": {"phase": "`arriving`, `parked`, `dialing`, `connected`"},
    "callyard_agent_instructions": {"outcome": "what became of it ([agent.md](agent.md))"},
    "callyard_agent_ami_events": {"event": "what Asterisk told: a handful of kinds"},
    "callyard_agent_ami_sessions": {"outcome": "`synced`, `failed` (to connect), `lost`"},
    "callyard_hook_left_out": {"reason": "`excluded`, `not-a-number`"},
    "callyard_hook_meetings_left_out": {"reason": "`excluded`, `not-a-number`"},
    "callyard_hook_connection_failures": {"error": "how it failed: seven kinds"},
}
"""By metric: what each label may be. Never anything that callers or senders choose."""


class Metric(NamedTuple):
    """One metric as Prometheus sees it."""

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str

    @property
    def shown(self) -> str:
        """The name of its series: a counter's end in ``_total``, an info's in ``_info``."""
        return self.name + {"counter": "_total", "info": "_info"}.get(self.kind, "")

    @property
    def section(self) -> str:
        """Whose it is: ``stream``, ``agent``, ``hook``, or ``all``."""
        owner = self.name.split("_")[1]
        return owner if owner in WORKERS else "all"


def metrics() -> list[Metric]:
    """Every metric of Callyard's own, sorted by name."""
    for module in WORKERS.values():
        importlib.import_module(module)
    declared = {one for one in REGISTRY._collector_to_names if isinstance(one, MetricWrapperBase)}  # noqa: SLF001 - what has no sample yet is told by no public method
    found = [
        Metric(one._name, str(one._type), tuple(one._labelnames), one._documentation)  # noqa: SLF001 - as above
        for one in declared
    ]
    return sorted(metric for metric in found if metric.name.startswith("callyard_"))


def reference() -> str:
    """The page as it stands in docs/metrics.md."""
    parts = [
        "# Metrics",
        "Made by `callyard schema --metrics`; change the metrics' own texts, or"
        " `callyard/metrics_reference.py`, instead.",
        "Each worker answers on `CALLYARD_HEALTH_HOST`, `CALLYARD_HEALTH_PORT` (0, the default: not at all):",
        "| path | answer |\n|---|---|\n"
        "| `/healthz` | 200 as long as the event loop runs: the liveness probe |\n"
        "| `/readyz` | 200 when ready, else 503 with what is missing: the readiness probe, never the liveness probe |\n"
        "| `/metrics` | what is listed here, in Prometheus's text format |",
        "| worker | ready means |\n|---|---|\n"
        "| stream | the group has given out its partitions, this worker's table is recovered, and a heartbeat was"
        " lately confirmed. Each rebalance makes it unready for a moment |\n"
        "| agent | Asterisk's manager session has its snapshot, the gateway's group has said who speaks (a standby is"
        " ready, too), a heartbeat was lately confirmed, and the owner has announced all calls |\n"
        "| hook | FreeSWITCH is followed, and Kafka has what each source's first snapshot told |",
        "From SIGTERM on a worker isn't ready. Counters begin at 0 with each start of a process. What the Python client"
        " tells of its process (`process_…`, `python_…`) is there as well.",
    ]
    known = metrics()
    for section, title in (("all", "Every worker"), *((name, f"`callyard {name}`") for name in WORKERS)):
        lines = [f"## {title}", "", "| metric | type | meaning | labels |", "|---|---|---|---|"]
        for metric in known:
            if metric.section == section:
                labels = "; ".join(f"`{name}`: {LABELS[metric.name][name]}" for name in metric.labels)
                lines.append(f"| `{metric.shown}` | {metric.kind} | {metric.meaning} | {labels} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"
