"""The dashboards and the alerts, for servers and for runs, taken apart."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "launch" / "monitoring"
DASHBOARD = FOLDER / "serving" / "grafana_serving.json"
ALERTS = FOLDER / "serving" / "serving_alerts.yaml"
RUN_DASHBOARD = FOLDER / "training" / "grafana_runs.json"
RUN_ALERTS = FOLDER / "training" / "run_alerts.yaml"
KEYWORDS = {"and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right", "bool", "offset"}
PROMTOOL = shutil.which("promtool")
NEEDS_PROMTOOL = pytest.mark.skipif(PROMTOOL is None, reason="needs promtool, and this machine has none")


def panels(dashboard: Path = DASHBOARD) -> list[dict[str, Any]]:
    return [panel for panel in json.loads(dashboard.read_text())["panels"] if panel["type"] != "row"]


def rules(alerts: Path) -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(alerts.read_text())["groups"] for rule in group["rules"]]


def expressions(dashboard: Path = DASHBOARD, alerts: Path = ALERTS) -> Iterator[tuple[str, str]]:
    """Where each stands, and what it is."""
    for panel in panels(dashboard):
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for rule in rules(alerts):
        yield rule["alert"], rule["expr"]


def metrics_in(expression: str) -> dict[str, set[str]]:
    """Names of metrics, and the labels that their matchers name."""
    plain = re.sub(r"\[[^]]*\]", "", re.sub(r"\b(?:by|without|on|ignoring) *\([^)]*\)", "", expression))
    found: dict[str, set[str]] = {}
    for name, matchers in re.findall(
        r"([a-zA-Z_:][\w:]*)(?![\w:]*\s*\()(?:\{([^}]*)\})?", re.sub(r'"[^"]*"', '""', plain)
    ):
        if name not in KEYWORDS:
            found.setdefault(name, set()).update(re.findall(r"(\w+) *[=!]", matchers))
    return found


def grouped_in(expression: str) -> set[str]:
    """Labels that are summed by."""
    return {label for group in re.findall(r"\bby *\(([^)]*)\)", expression) for label in re.split(r", *", group)}


def check_dashboard(dashboard: Path) -> None:
    """Panels name their metrics, work on any Prometheus, and do not overlap."""
    content = json.loads(dashboard.read_text())
    assert content["id"] is None
    assert len({panel["id"] for panel in content["panels"]}) == len(content["panels"])
    for panel in panels(dashboard):
        described = {name for target in panel["targets"] for name in metrics_in(target["expr"])}
        for name in described:
            assert f"`{name.removesuffix('_bucket')}`" in panel["description"], panel["title"]
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
    taken: set[tuple[int, int]] = set()
    for panel in content["panels"]:
        place = panel["gridPos"]
        columns, rows = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        cells = {(x, y) for x in columns for y in rows}
        assert max(columns) < 24
        assert not cells & taken, panel["title"]
        taken |= cells


def check_alerts(alerts: Path) -> None:
    """They say what is wrong and what to do, and Prometheus itself takes them, where it is."""
    names = [rule["alert"] for rule in rules(alerts)]
    assert len(set(names)) == len(names)
    for rule in rules(alerts):
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert {"summary", "description"} <= set(rule["annotations"])
    if PROMTOOL is not None:
        done = subprocess.run([PROMTOOL, "check", "rules", str(alerts)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def fires(folder: Path, alerts: Path, alert: str, series: Mapping[str, str], *, after: str) -> bool:
    """Whether an alert is firing after so long, as promtool sees it: ``series`` have one value a minute."""
    assert PROMTOOL is not None
    test = {
        "rule_files": [str(alerts)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "promql_expr_test": [
                    {
                        "expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}}) or vector(0)',
                        "eval_time": after,
                        "exp_samples": [{"labels": "{}", "value": 1}],
                    }
                ],
            }
        ],
    }
    path = folder / "test.yaml"
    path.write_text(yaml.safe_dump(test))
    done = subprocess.run([PROMTOOL, "test", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 or "got:" in done.stderr + done.stdout, done.stderr + done.stdout
    return done.returncode == 0
