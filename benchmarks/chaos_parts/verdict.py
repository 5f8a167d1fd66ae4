"""Whether anything was lost: pure functions of what a run has written."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rlserve.pool.worker_table import LEGAL_MOVES, WorkerState
from rlserve.tracking.cost.replay import replay
from rlserve.tracking.jsonl import read_json_lines

Line = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Of one run. All but the last three are numbers of things that must not be."""

    num_lost: int
    """Prompt groups that were let in, and neither trained nor dropped with a reason; and steps that were not done."""
    num_trained_twice: int
    num_too_stale: int
    """Groups with a token of older weights than the bound allows."""
    num_without_version: int
    """Groups with a token that no version made."""
    num_versions_back: int
    """Times that a worker took older weights than it had."""
    num_illegal: int
    """Changes of a worker's state that the table of legal moves does not have."""
    cost_error: float
    """Difference between the time of the slots and the sum of what it was used for, as a share of that time."""
    max_staleness: int
    held_out_after: float | None
    """None where the run was not scored."""


def judge(folder: Path) -> Verdict:
    """The run in ``folder``, which came to its end."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    summary = json.loads((folder / "summary.json").read_text())
    samples, events = read_json_lines(folder / "samples.jsonl"), read_json_lines(folder / "events.jsonl")
    trained = Counter(group_id for line in samples for group_id in line["group_ids"])
    ages = [line["step"] - 1 - version for line in samples for version in line["oldest_versions"]]
    accounted = summary["groups_trained"] + sum(summary["groups_dropped"].values())
    missing_steps = set(range(1, config["num_steps"] + 1)) - {line["step"] for line in samples}
    return Verdict(
        num_lost=abs(summary["groups_admitted"] - accounted)
        + abs(summary["groups_trained"] - trained.total())
        + len(missing_steps),
        num_trained_twice=sum(number - 1 for number in trained.values()),
        num_too_stale=sum(age > config["rollout"]["max_staleness"] for age in ages),
        num_without_version=sum(version < 0 for line in samples for version in line["oldest_versions"]),
        num_versions_back=num_versions_back(events),
        num_illegal=num_illegal_moves(events),
        cost_error=cost_error(events),
        max_staleness=max(ages, default=0),
        held_out_after=summary["held_out_after"],
    )


def cost_error(events: Sequence[Line]) -> float:
    """How far what ``rlserve cost`` tells is from what it is to add up to, which is counted here by itself."""
    owned_s, last_s = 0.0, 0.0
    begun: dict[str, float] = {}
    for event in events:
        match event["event"]:
            case "run":
                owned_s += sum(last_s - since_s for since_s in begun.values())
                begun, begin_s, is_up = {}, event["begin_s"], False
            case "worker":
                is_up = True
            case "slot" if event["owner"] == "gone":
                owned_s += event["time_s"] - begun.pop(event["slot_id"])
            case "slot":
                begun.setdefault(event["slot_id"], event["time_s"] if is_up else begin_s)
        last_s = max(last_s, event["time_s"])
    owned_s += sum(last_s - since_s for since_s in begun.values())
    spent = replay(events).statement(last_s).by_use
    return abs(3600 * sum(spent.values()) / owned_s - 1) if owned_s else 0.0


def num_versions_back(events: Iterable[Line]) -> int:
    """How often the worker of a slot took older weights than it had. A new process has none, nor has a new engine."""
    held: dict[str, int] = {}
    number = 0
    for event in events:
        match event["event"]:
            case "worker":
                held.pop(event["slot_id"], None)
            case "weights" if event["slot_id"] is not None:
                number += event["version"] < held.get(event["slot_id"], -1)
                held[event["slot_id"]] = event["version"]
            case "run":
                held.clear()
    return number


def num_illegal_moves(events: Iterable[Line]) -> int:
    """Of workers. Each begins as restarting, in each process of the run."""
    states: dict[str, WorkerState] = {}
    number = 0
    for event in events:
        if event["event"] == "run":
            states.clear()
        elif event["event"] == "worker_state":
            before, after = states.get(event["slot_id"]), WorkerState(event["state"])
            number += after is not WorkerState.RESTARTING if before is None else after not in LEGAL_MOVES[before]
            states[event["slot_id"]] = after
    return number


def same_training(one: Sequence[Line], other: Sequence[Line]) -> bool:
    """Whether two runs have trained on the same groups with the same rewards, step by step."""

    def steps(lines: Sequence[Line]) -> list[tuple[Any, ...]]:
        return [(line["step"], line["group_ids"], line["rewards"]) for line in lines]

    return steps(one) == steps(other)
