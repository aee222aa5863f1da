"""The alert rules: of metrics that exist, the same for the operator, each told what to do and tested both ways.

Whether they fire is `promtool`'s to say (`make manifests`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from callyard.metrics_reference import Metric, metrics
from tests.support.kustomize import KUBERNETES, documents

MONITORING = KUBERNETES.parent / "monitoring"
[RULES] = documents(MONITORING / "alerts.yaml")
[TESTS] = documents(MONITORING / "alerts.test.yaml")
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]
TARGET_LABELS = {"job", "instance", "gateway", "node", "le"}
"""What whoever scrapes gives, and Prometheus itself."""


def series() -> dict[str, Metric]:
    """The names that Prometheus has, and the metrics behind them."""
    found = {}
    for metric in metrics():
        suffixes = ("_bucket", "_count", "_sum") if metric.kind == "histogram" else ("",)
        found.update({metric.shown + suffix: metric for suffix in suffixes})
    return found


def named(expression: str) -> list[tuple[str, dict[str, str]]]:
    """The series of an expression: their names, and the labels that are asked for."""
    return [
        (name, dict(re.findall(r'(\w+)=~?"([^"]*)"', labels)))
        for name, labels in re.findall(r"\b(callyard_\w+)(?:\{([^}]*)\})?", expression)
    ]


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_alert_is_of_metrics_and_labels_that_exist(alert: dict[str, Any]) -> None:
    known, found = series(), named(alert["expr"])
    assert found
    for name, labels in found:
        assert name in known
        assert set(labels) <= {*known[name].labels, *TARGET_LABELS}, name
    wanted = {
        label.strip() for group in re.findall(r"(?:by|on) \(([^)]*)\)", alert["expr"]) for label in group.split(",")
    }
    wanted |= set(re.findall(r"\$labels\.(\w+)", str(alert["annotations"])))
    assert wanted <= {*TARGET_LABELS, *(label for name, _ in found for label in known[name].labels)}


def test_outcomes_that_alerts_ask_for_exist() -> None:
    asked = {(name, label, value) for alert in ALERTS for name, labels in named(alert["expr"])
             for label, values in labels.items() for value in values.split("|")}  # fmt: skip
    assert len(asked) > 8
    docs = KUBERNETES.parent.parent / "docs"
    told = {
        "callyard_agent_instructions_total": (docs / "agent.md").read_text(encoding="utf-8"),
        "callyard_stream_decisions_total": (docs / "schema.json").read_text(encoding="utf-8")
        + (docs / "security.md").read_text(encoding="utf-8"),
    }
    reference = (docs / "metrics.md").read_text(encoding="utf-8")
    for name, label, value in asked:
        text = told.get(name, reference)
        assert f"`{value}`" in text or f'"{value}"' in text, (name, label, value)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_alert_says_what_is_wrong_and_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in {"critical", "warning"}
    assert set(alert["annotations"]) == {"summary", "description"}
    assert len(alert["annotations"]["description"]) > 80
    assert re.fullmatch(r"Callyard[A-Z]\w+", alert["alert"])


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_alert_has_a_test_in_which_it_fires_and_one_in_which_it_does_not(alert: dict[str, Any]) -> None:
    name, ended = alert["alert"], {True: 0, False: 0}
    for test in TESTS["tests"]:
        if test["name"].split()[0] == name:
            fires = "doesn't" not in test["name"]
            last = test["promql_expr_test"][-1]
            assert last["expr"] == f'ALERTS{{alertname="{name}",alertstate="firing"}}'
            assert bool(last["exp_samples"]) == fires, test["name"]
            ended[fires] += 1
    assert min(ended.values()) >= 1
    assert len({test["name"] for test in TESTS["tests"]}) == len(TESTS["tests"])


def test_the_operators_rules_are_the_same() -> None:
    [resource] = documents(KUBERNETES / "components" / "monitoring" / "rules.yaml")
    assert resource["spec"] == RULES, "run make docs"


def test_descriptions_name_files_that_exist() -> None:
    root = Path(__file__).parent.parent
    files = {name for alert in ALERTS for name in re.findall(r"docs/[\w-]+\.md", alert["annotations"]["description"])}
    assert files
    assert all((root / name).exists() for name in files)
