"""The dashboard and the alerts for servers, taken apart."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[2] / "launch" / "monitoring"
DASHBOARD = FOLDER / "grafana_serving.json"
ALERTS = FOLDER / "serving_alerts.yaml"
KEYWORDS = {"and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right", "bool", "offset"}


def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def expressions() -> Iterator[tuple[str, str]]:
    """Where each stands, and what it is."""
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for rule in rules():
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
