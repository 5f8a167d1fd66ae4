"""Real paced runs beside simulated ones of the same configuration: how well the simulator tells what a run will do.

Both do the same steps on the same work. What counts is the rate of trained prompt groups, in modelled seconds, from the
end of the first step to the end of the last. What calls between processes of this machine add to a step and to the
way of weights is no matter of the modelled accelerators: the simulated run is given the means that the real one
recorded.
Runs in which this machine was the bottleneck are shown and do not count.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from launches import launch

from rlserve.config import load
from rlserve.simulate.from_config import AnyNumber, Changes, build_scenario
from rlserve.simulate.scenario import Overheads, Scenario
from rlserve.simulate.simulation import SimulatedRun, simulate

MAX_ERROR = 0.05
MIN_CASES = 12
NUM_CHANCES = 3
"""Simulated runs of each case: which replica is the first to have new weights is chance, in the real run too."""
_SIX = "pool.slots=[{type: paced-H100, count: 4, prefer: train}, {type: paced-H200, count: 2, prefer: rollout}]"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One configuration: ``conf/paced.yaml`` with these settings."""

    name: str
    settings: tuple[str, ...]
    num_steps: int
    dilation: float = 0.1


def _static(name: str, num_rollout: int, num_steps: int, *settings: str, dilation: float = 0.1) -> Case:
    chosen = ("manager=static", f"pool.num_initial_rollout={num_rollout}", *settings)
    return Case(name=name, settings=chosen, num_steps=num_steps, dilation=dilation)


def _moving(name: str, num_rollout: int, num_steps: int, *settings: str) -> Case:
    chosen = ("manager=rate_matching", f"pool.num_initial_rollout={num_rollout}", *settings)
    return Case(name=name, settings=chosen, num_steps=num_steps)


def _kept(begin: float, end: float, course: str = "linear") -> tuple[str, ...]:
    return (
        f"rollout.workload.kept_share={begin}",
        f"rollout.workload.kept_share_end={end}",
        f"rollout.workload.kept_course={course}",
    )


CASES = (
    _static("twelve-3", 3, 40),
    _static("twelve-5", 5, 40),
    _static("twelve-8", 8, 40),
    _static("twelve-7-kept-0.5", 7, 40, "rollout.workload.kept_share=0.5"),
    _static("six-3", 3, 12, _SIX),
    _static("six-stale-1", 3, 8, _SIX, "rollout.max_staleness=1"),
    _static("six-H200-2", 2, 10, "pool.slots=[{type: paced-H200, count: 6}]"),
    _static("four-2", 2, 12, "pool=paced_four"),
    _static("four-sigma-0.5", 1, 8, "pool=paced_four", "rollout.workload.sigma=0.5"),
    _static("four-14B-kept-0.5", 2, 8, "pool=paced_four", "pool.pacing.model=14B", "rollout.workload.kept_share=0.5"),
    _static("four-4B", 2, 10, "pool=paced_four", "pool.pacing.model=4B", dilation=0.15),
    _moving("twelve-kept-falls", 6, 40, *_kept(1.0, 0.25)),
    _moving("six-kept-rises", 4, 16, _SIX, *_kept(0.4, 1.0)),
    _moving("five-square-wave", 2, 16, "pool.slots=[{type: paced-H100, count: 5}]", *_kept(1.0, 0.4, "square")),
)


@dataclass(frozen=True, kw_only=True)
class Side:
    """What one of the two came to."""

    groups_per_s: float
    wait_share: float
    """Of the time, that training waited for a batch."""
    num_moves: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A real run beside the simulated one."""

    name: str
    real: Side
    simulated: Side
    overrun_share: float
    counts: bool
    """This machine kept up."""

    @property
    def ratio(self) -> float:
        """Above 1 the simulated run is the quicker one."""
        return self.simulated.groups_per_s / self.real.groups_per_s


def run_case(case: Case, folder: Path) -> Path:
    """The folder of the case's real run, which is done unless it is there."""
    settings = (*case.settings, f"num_steps={case.num_steps}", f"pool.pacing.dilation={case.dilation}")
    launch("conf/paced.yaml", *settings, name=case.name, folder=folder)
    return folder / case.name


def compare_run(folder: Path) -> Comparison:
    """Simulate the configuration of a paced run, and set both beside each other."""
    config = load(str(folder / "config.yaml"), discovered=AnyNumber()).config
    scenario = build_scenario(config, Changes())
    scenario = replace(scenario, overheads=read_overheads(folder, scenario))
    runs = [simulate(scenario, config.deciding, seed=config.seed, chance=chance) for chance in range(NUM_CHANCES)]
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    steps = [row for row in _lines(folder / "metrics.jsonl") if "timing_s/step" in row]
    ends_s = [row["training/time_s"] for row in steps]
    real = Side(
        groups_per_s=rate(ends_s, config.rollout.prompts_per_step),
        wait_share=sum(row["timing_s/wait"] for row in steps) / ends_s[-1],
        num_moves=int(summary["moves_to_train"] + summary["moves_to_rollout"]),
    )
    return Comparison(
        name=folder.name,
        real=real,
        simulated=_simulated(runs, config.rollout.prompts_per_step),
        overrun_share=summary["overrun_share"],
        counts=not summary["host_was_bottleneck"],
    )


def read_overheads(folder: Path, scenario: Scenario) -> Overheads:
    """What this machine added to steps and to the way of weights, as the run recorded it: means."""
    rows = _lines(folder / "metrics.jsonl")
    waits_s = {row["training/global_step"]: row["timing_s/wait"] for row in rows if "timing_s/wait" in row}
    events = _lines(folder / "events.jsonl")
    types = {event["slot_id"]: event["slot_type"] for event in events if event["event"] == "slot"}
    steps = [event for event in events if event["event"] == "step"]
    costs = scenario.costs
    added_s = []
    for before, step in itertools.pairwise(steps):
        members = [types[slot_id] for slot_id in step["slot_ids"]]
        modelled_s = costs.train_step_s(members, step["num_tokens"]) + max(map(costs.snapshot_s, members))
        added_s.append(step["time_s"] - before["time_s"] - waits_s[step["step"]] - modelled_s)
    weights_s = max(costs.weights_s(gang.type) for gang in scenario.gangs)
    syncs_s = [
        row["weights/publish_s"] + row["weights/swap_s"] - weights_s for row in rows if row.get("weights/swap_s")
    ]
    return Overheads(step_s=_mean_above_0(added_s), sync_s=_mean_above_0(syncs_s))


def _mean_above_0(values: Sequence[float]) -> float:
    return max(0.0, statistics.fmean(values)) if values else 0.0


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]


def _simulated(runs: Sequence[SimulatedRun], prompts_per_step: int) -> Side:
    return Side(
        groups_per_s=statistics.fmean(rate(run.step_ends_s, prompts_per_step) for run in runs),
        wait_share=statistics.fmean(run.wait_share for run in runs),
        num_moves=statistics.fmean(len(run.moves) for run in runs),
    )


def rate(ends_s: Sequence[float], prompts_per_step: int) -> float:
    """Prompt groups a second, from the end of the first step to that of the last."""
    return (len(ends_s) - 1) * prompts_per_step / (ends_s[-1] - ends_s[0])


def checks_of(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """One for each run that counts, and one for their number."""
    counted = [each for each in comparisons if each.counts]
    checks = [
        {
            "name": f"{each.name}: simulated ÷ real",
            "value": each.ratio,
            "bar": [1 - MAX_ERROR, 1 + MAX_ERROR],
            "met": abs(each.ratio - 1) <= MAX_ERROR,
        }
        for each in counted
    ]
    number = len(counted)
    return [*checks, {"name": "runs that count", "value": number, "bar": MIN_CASES, "met": number >= MIN_CASES}]


def line(comparison: Comparison) -> str:
    """For people."""
    real, simulated = comparison.real, comparison.simulated
    off = abs(comparison.ratio - 1) > MAX_ERROR
    verdict = "the host was the bottleneck, not counted" if not comparison.counts else "MISSED" if off else "ok"
    return (
        f"{comparison.name:20} {real.groups_per_s:8.3f} {simulated.groups_per_s:9.3f} {comparison.ratio:6.3f}"
        f" {real.wait_share:7.0%} {simulated.wait_share:5.0%} {real.num_moves:5.0f} {simulated.num_moves:4.1f}"
        f" {comparison.overrun_share:6.1%}  {verdict}"
    )


def validate(folder: Path, names: Sequence[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Do what is missing, compare, and print; the comparisons and the checks as plain data."""
    print(f"runs: {folder}", file=sys.stderr)
    print(f"{'':20} {'real':>8} {'simulated':>9} {'ratio':>6} {'waits':>13} {'moves':>10} {'late':>6}")
    comparisons = []
    for case in CASES:
        if not names or case.name in names:
            comparisons.append(compare_run(run_case(case, folder)))
            print(line(comparisons[-1]), flush=True)
    data = [{**asdict(each), "ratio": each.ratio} for each in comparisons]
    return data, checks_of(comparisons)
