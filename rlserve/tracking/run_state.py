"""How a run stands, read from its folder alone, whether its process lives or not.

::

    owner.json            an owner that lives: running; one that is gone: dead
    job.json              submitted, and nothing else yet: waiting
    events.jsonl          its last line "end": finished (0), stopped (a signal), failed (anything else)
    metrics.jsonl         only its beginning and its end are read: a long run has many lines
    decisions.jsonl, summary.json, config.yaml, rlserve.log
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlserve.tracking import names
from rlserve.tracking.jsonl import read_first_json_lines, read_last_json_lines
from rlserve.tracking.owner import Owner, find_owner
from rlserve.tracking.progress import estimate_time_left_s
from rlserve.tracking.run_folder import LATEST, RunFolder
from rlserve.tracking.summary import RunSummary, read_summary

State = Literal["waiting", "running", "finished", "stopped", "failed", "dead"]
_FIRST_SIGNAL_EXIT = 129
_ERROR_LINE = re.compile(r"^\S+ \S+ (?:ERROR|CRITICAL) +\d+ [\w.]+: (.*)$")
_LOG_TAIL_BYTES = 1 << 18
_SLOTS = {owner: f"pool/num_{owner}" for owner in ("train", "rollout", "moving", "dead")}


@dataclass(frozen=True, kw_only=True)
class RunState:
    """How a run stands. None is what is not known."""

    name: str
    path: str
    state: State
    owner: Owner | None
    """The process that writes to it, or did so last and vanished."""
    step: int
    """Training steps done."""
    num_steps: int | None
    held_out_before: float | None
    held_out_after: float | None
    """The newest score after the one before training."""
    reward: float | None
    """Mean of the last step."""
    kl: float | None
    queue_length: int | None
    slots: Mapping[str, int]
    """How many train, roll out, are moving, are dead; as of the last step."""
    last_decision: str | None
    """The last that moved a slot, or else the last."""
    last_error: str | None
    """What it failed with, or the last error in its log."""
    time_left_s: float | None
    server: str | None
    """Address that clients reach its replicas at (``rollout.server``)."""
    begun_s: float
    """In seconds since 1970, as is ``written_s``."""
    written_s: float
    """When metrics or events were written last."""


def read_run_state(folder: RunFolder, *, now: Callable[[], float] = time.time) -> RunState:
    """Look at a run's folder; changes nothing.

    Raises:
        DataError: a file of the run is damaged.
    """
    first, last = read_first_json_lines(folder.metrics_file), read_last_json_lines(folder.metrics_file)
    events, decisions = read_last_json_lines(folder.events_file), read_last_json_lines(folder.decisions_file)
    summary, found = read_summary(folder), find_owner(folder.path, now=now)
    newest = {name: value for record in last for name, value in record.items() if value is not None}
    step = int(newest.get("step", 0))
    num_steps = _num_steps(folder.read_config())
    waits = folder.job_file.exists() and found is None and not events
    state: State = "waiting" if waits else _state(found, events, summary, num_steps)
    before, after = held_out_scores([*first, *last])
    queue = newest.get(names.QUEUE_LENGTH)
    if decisions and decisions[-1]["time_s"] >= newest.get(names.TIME, 0.0):
        queue = decisions[-1]["queue_length"]
    return RunState(
        name=folder.name,
        path=str(folder.path),
        state=state,
        owner=None if found is None else found[0],
        step=step,
        num_steps=num_steps,
        held_out_before=before,
        held_out_after=after,
        reward=newest.get(names.REWARD),
        kl=newest.get(names.KL),
        queue_length=queue,
        slots={owner: int(newest[metric]) for owner, metric in _SLOTS.items() if metric in newest},
        last_decision=last_decision(decisions),
        last_error=end_error(events) or last_error(folder.log_file),
        time_left_s=_time_left_s(last, num_steps, step) if state == "running" else None,
        server=_server(folder) if state == "running" else None,
        begun_s=folder.versions_file.stat().st_mtime,
        written_s=max(
            path.stat().st_mtime
            for path in (folder.versions_file, folder.metrics_file, folder.events_file)
            if path.exists()
        ),
    )


def _server(folder: RunFolder) -> str | None:
    """Not there before the server listens, nor after it."""
    try:
        return str(json.loads(folder.server_file.read_text(encoding="utf-8"))["address"])
    except FileNotFoundError:
        return None


def find_runs(output_dir: Path) -> list[RunFolder]:
    """The runs of a folder, ``latest`` left out; none where there is no such folder."""
    folders = (path.parent for path in output_dir.glob("*/versions.json"))
    return [RunFolder.open(path) for path in sorted(folders) if not (path.name == LATEST and path.is_symlink())]


def held_out_scores(metrics: Sequence[Mapping[str, Any]]) -> tuple[float | None, float | None]:
    """The score before training, and the newest one after."""
    scored = {int(record["step"]): record[names.HELD_OUT] for record in metrics if names.HELD_OUT in record}
    last = max(scored, default=0)
    return scored.get(0), scored[last] if last > 0 else None


def last_decision(decisions: Sequence[Mapping[str, Any]]) -> str | None:
    """The last decision to move a slot, or else the last one."""
    moves = [decision for decision in decisions if decision["action"] != "hold"] or decisions
    if not moves:
        return None
    action = {"to_rollout": "to rollout", "to_train": "to train"}.get(moves[-1]["action"], "hold")
    slot = f"{moves[-1]['slot_id']} " if moves[-1]["slot_id"] else ""
    return f"{slot}{action} after step {moves[-1]['step']} ({moves[-1]['reason']})"


def end_error(events: Sequence[Mapping[str, Any]]) -> str | None:
    """What a run that has ended failed with."""
    return events[-1]["error"] if events and events[-1]["event"] == "end" else None


def last_error(log_file: Path) -> str | None:
    """The last line that was logged as an error."""
    if not log_file.exists():
        return None
    with log_file.open("rb") as file:
        file.seek(max(log_file.stat().st_size - _LOG_TAIL_BYTES, 0))
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    return next((found for line in reversed(lines) if (found := _error_in(line)) is not None), None)


def _error_in(line: str) -> str | None:
    """What a line of a log says if it is an error, in either format."""
    if match := _ERROR_LINE.match(line):
        return match[1]
    try:
        record = json.loads(line) if line.startswith("{") else None
    except ValueError:  # its beginning, or its end, is missing
        return None
    if not isinstance(record, dict) or record.get("level") not in ("ERROR", "CRITICAL"):
        return None
    return str(record.get("message"))


def _state(
    found: tuple[Owner, bool] | None,
    events: Sequence[Mapping[str, Any]],
    summary: RunSummary | None,
    num_steps: int | None,
) -> State:
    if found is not None:
        return "running" if found[1] else "dead"
    if events and events[-1]["event"] == "end":
        exit_code = events[-1]["exit_code"]
        return "finished" if exit_code == 0 else "stopped" if exit_code >= _FIRST_SIGNAL_EXIT else "failed"
    # The event log itself may have failed, on a full disk: the summary still tells.
    return "finished" if summary is not None and summary.num_steps == num_steps else "failed"


def _num_steps(config: Mapping[str, Any]) -> int | None:
    number = config.get("num_steps")
    return number if isinstance(number, int) else None


def _time_left_s(metrics: Sequence[Mapping[str, Any]], num_steps: int | None, step: int) -> float | None:
    durations_s = [record[names.STEP_S] for record in metrics if record.get(names.STEP_S) is not None]
    return None if num_steps is None else estimate_time_left_s(durations_s, num_steps - step)
