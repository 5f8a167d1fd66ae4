"""What holds for all tests: Triton's interpreter where there is no GPU, threads that share the processors, and the
share of time that each room's tests take, printed at the end.
"""

from __future__ import annotations

import os
import signal
from collections import defaultdict

import pytest

# Both are read once, when torch and its OpenMP are loaded, and are inherited by the processes that tests start.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Under nohup the processes that tests start would ignore a SIGHUP; a handler is not inherited.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

import torch
from hypothesis import HealthCheck, settings

# How long an example takes says something of who else uses the machine, not of the code.
settings.register_profile("rlserve", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("rlserve")

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when it is first imported, by whomever


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A table of seconds by room, summed over set-up, call and tear-down of its tests in all processes."""
    seconds: dict[str, float] = defaultdict(float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[_room(report.nodeid)] += report.duration
    total = sum(seconds.values())
    if total < 1.0:
        return
    terminalreporter.write_sep("=", "seconds by room")
    for room, spent in sorted(seconds.items(), key=lambda item: -item[1]):
        terminalreporter.write_line(f"{spent:8.1f} s {100 * spent / total:4.0f} %  {room}")


def _room(nodeid: str) -> str:
    """``tests/unit/engine`` of ``tests/unit/engine/test_engine_stop.py::test_x``; a whole run's tests are one room."""
    return "/".join(nodeid.split("::")[0].split("/")[:-1])
