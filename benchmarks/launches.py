"""Whole runs that benchmarks compare, each in a folder of its own; one that lies there already is not done again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent


def launch(run_file: str, *settings: str, name: str, folder: Path) -> None:
    """Do the run ``name`` in ``folder``, with nothing that takes time but the run itself; exits where it fails, or
    where the run that lies there was interrupted."""
    if (folder / name).exists():
        num_steps, wanted = _steps_done(folder / name)
        if num_steps < wanted:
            sys.exit(f"{folder / name} ended after {num_steps} of {wanted} steps: remove it, and it is done again")
        return
    command = [
        *(sys.executable, "-m", "rlserve", "launch", run_file, *settings),
        f"name={name}",
        f"output_dir={folder}",
        "tracking=off",
        "tracking.report=false",
        "checkpoint.every_steps=0",
    ]
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def _steps_done(folder: Path) -> tuple[int, int]:
    """Of a run that lies there, and how many it was to do."""
    config: dict[str, Any] = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    done: int = read_summary(folder)["num_steps"] if (folder / "summary.json").exists() else 0
    return done, config["num_steps"]


def read_summary(folder: Path) -> dict[str, Any]:
    """What the run in ``folder`` comes down to."""
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return summary


def read_steps(folder: Path) -> list[dict[str, Any]]:
    """The metrics of each training step of the run in ``folder``."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if "timing_s/step" in row]
