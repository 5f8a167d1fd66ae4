"""Whole runs that benchmarks compare, each in a folder of its own; one that lies there already is not done again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def launch(run_file: str, *settings: str, name: str, folder: Path) -> None:
    """Do the run ``name`` in ``folder``, with nothing that takes time but the run itself; exits where it fails."""
    if (folder / name / "summary.json").exists():
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


def read_summary(folder: Path) -> dict[str, Any]:
    """What the run in ``folder`` comes down to."""
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return summary


def read_steps(folder: Path) -> list[dict[str, Any]]:
    """The metrics of each training step of the run in ``folder``."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if "timing_s/step" in row]
