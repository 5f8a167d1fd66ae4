"""A pytest plugin for vLLM's own tests: leaves out what ``selection.toml`` says, and records what became of each.

It is loaded by the Python that has vLLM (``-p recording``), which need not have rlserve. ``RLSERVE_VLLM_REPORT`` names
the file of the record, a JSON line for each test.
"""

from __future__ import annotations

import fnmatch
import inspect
import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

_SERVERS = ("server", "client")
IN_PROCESS = "runs vLLM's own classes in the test's process; no server answers"


def reason_for(name: str, reasons: Mapping[str, str]) -> str | None:
    """Of the first pattern that a test's name matches, which may leave out its parameters."""
    for pattern, reason in reasons.items():
        if fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, f"{pattern}[[]*"):
            return reason
    return None


def read_selection() -> dict[str, Any]:
    """What is left out and what is explained, by pattern."""
    return tomllib.loads((Path(__file__).parent / "selection.toml").read_text(encoding="utf-8"))


def _asks_a_server(item: pytest.Item) -> bool:
    fixtures = getattr(item, "fixturenames", ())
    if any(word in fixture for fixture in fixtures for word in _SERVERS):
        return True
    return "RemoteOpenAIServer" in inspect.getsource(item.function)  # type: ignore[attr-defined]


def said_by(told: object) -> str:
    """Why a test failed or skipped itself, in its own words."""
    if isinstance(told, tuple):  # file, line, and the reason
        return str(told[-1]).removeprefix("Skipped: ")
    crash = getattr(told, "reprcrash", None)
    return str(told or "") if crash is None else str(crash.message)


def _record(name: str, outcome: str, why: str = "") -> None:
    with Path(os.environ["RLSERVE_VLLM_REPORT"]).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"name": name, "outcome": outcome, "why": why}) + "\n")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reasons = read_selection()["left_out_tests"]
    kept, left_out = [], []
    for item in items:
        reason = reason_for(item.nodeid, reasons) or (None if _asks_a_server(item) else IN_PROCESS)
        if reason is None:
            kept.append(item)
        else:
            left_out.append(item)
            _record(item.nodeid, "left out", reason)
    items[:] = kept
    config.hook.pytest_deselected(items=left_out)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or (report.when == "setup" and report.outcome != "passed"):
        _record(report.nodeid, report.outcome, said_by(report.longrepr)[:2000])


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        _record(report.nodeid, "failed", f"cannot be imported: {str(report.longrepr)[-800:]}")
