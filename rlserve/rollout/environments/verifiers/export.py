"""Writes the data set of an environment of the verifiers package to files, in a process of its own, since what the
environment does while it is loaded (event loops, signals, imports) is nobody else's business.

The configuration comes by standard input, pickled. In the folder are then ``train.jsonl``, ``held_out.jsonl`` where
the environment has an evaluation set, and ``about.json``; or ``error.txt``.
"""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlserve.errors import EnvironmentFailedError
from rlserve.rollout.environments.config import EnvironmentConfig
from rlserve.rollout.environments.verifiers.loading import load

TRAIN, HELD_OUT, ABOUT, ERROR = "train.jsonl", "held_out.jsonl", "about.json", "error.txt"


def main(folder: str) -> None:
    """What the process does."""
    config = pickle.load(sys.stdin.buffer)
    assert isinstance(config, EnvironmentConfig)
    try:
        write_data(load(config), f"environment.name={config.name}", Path(folder))
    except EnvironmentFailedError as error:
        (Path(folder) / ERROR).write_text(str(error), encoding="utf-8")


def write_data(environment: Any, place: str, folder: Path) -> None:
    """Write the rows, and what the conversations need to know of the environment. ``place`` begins messages.

    Raises:
        EnvironmentFailedError: it has nothing to train on, or rows that cannot be used here.
    """
    if environment.dataset is None and environment.dataset_source is None:
        raise EnvironmentFailedError(f"{place}: has no data set to train on, only one for evaluation")
    _write(environment.get_dataset(), f"{place}: its data set", folder / TRAIN)
    if environment.eval_dataset is not None or environment.eval_dataset_source is not None:
        _write(environment.get_eval_dataset(), f"{place}: its evaluation set", folder / HELD_OUT)
    tools = [tool.model_dump(exclude={"strict"}) for tool in environment.tool_defs or ()]
    about = {
        "tools": [{"type": "function", "function": tool} for tool in tools],
        "max_turns": max(getattr(environment, "max_turns", 0), 0),
    }
    (folder / ABOUT).write_text(json.dumps(about), encoding="utf-8")


def _write(rows: Iterable[Mapping[str, Any]], place: str, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for index, row in enumerate(rows):
            file.write(_line({"answer": "", **row}, f"{place}, row {index}") + "\n")


def _line(row: dict[str, Any], place: str) -> str:
    """A row as JSON. Arrow gives each message the fields of all others; those without a value are left out.

    Raises:
        EnvironmentFailedError: it has its own tools, or values that JSON has not.
    """
    info = row.get("info")
    if "tool_defs" in (json.loads(info) if isinstance(info, str) and info else info or {}):
        raise EnvironmentFailedError(f"{place}: has tools of its own (info['tool_defs']); all rows must have the same")
    if isinstance(row["prompt"], list):
        row["prompt"] = [{key: value for key, value in each.items() if value is not None} for each in row["prompt"]]
    try:
        return json.dumps(row, ensure_ascii=False)
    except TypeError as error:
        raise EnvironmentFailedError(f"{place}: {error}, and rows must be plain data") from None
