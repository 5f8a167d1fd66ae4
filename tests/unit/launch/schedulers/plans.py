"""Plans of jobs, the same on every machine."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from rlserve.config import load, to_yaml
from rlserve.launch.schedulers.plan import JobPlan

PRICES = "currency: USD\ndate: 2026-11-01\nper_hour: {H100: 2.5, H200: 3.5}\n"


@cache
def plan_of(*settings: str) -> JobPlan:
    """The default run as ``hello``, under ``/data/runs``."""
    run = ["name=hello", "output_dir=/data/runs", "launch.kind=cluster", "tracking=off"]
    config = load("conf/rlhf.yaml", [*run, *settings]).config
    return JobPlan(
        name="hello",
        folder=Path("/data/runs/hello"),
        python="/data/.venv/bin/python",
        config=config,
        run_file=to_yaml(config),
    )
