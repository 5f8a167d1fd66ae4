"""Measure whether moves pay: real runs with the manager's moves against every static split, in turn on one machine.

python benchmarks/coscheduling.py [--scenario NAME …] [--seeds N] [--splits 4,5,6] [--steps N] [--dilation X]
                                  [--folder DIR] [--json FILE]

Scenarios but ``default`` are runs on twelve paced slots (docs/paced_runs.md): real processes, modelled accelerators.
Runs that are compared do the same number of steps on the same work, so what counts is the time from the end of the
first step to the end of the last, in seconds of the run. The best static split is found by trying those that are asked
for, all by default. A paced run in which this machine was the bottleneck is shown and does not count. Runs that lie in
``--folder`` already are not done again, so a measurement can be spread over several calls.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launches import launch, read_steps, read_summary
from machine import circumstances

SETTLING_S = 60.0
"""After which a run that began badly must keep up with the best split."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Runs that are compared with each other."""

    name: str
    run_file: str
    settings: tuple[str, ...]
    num_steps: int
    splits: tuple[int, ...]
    """Numbers of rollout slots of the static runs."""
    start: int
    """Rollout slots that the run with moves begins with: those that suit the load of the start."""
    bar: float
    """Least rate against the best static split."""
    start_bar: float | None = None
    """Least rate against the static split of the start."""
    settled_bar: float | None = None
    """Least rate against the best static split once ``SETTLING_S`` have passed."""


def _paced(name: str, *settings: str, bar: float, start: int = 4, num_steps: int = 60, **bars: float) -> Scenario:
    return Scenario(
        name=name,
        run_file="conf/paced.yaml",
        settings=settings,
        num_steps=num_steps,
        splits=tuple(range(2, 10)),
        start=start,
        bar=bar,
        **bars,
    )


def _drifting(begin: float, end: float, course: str = "linear") -> tuple[str, ...]:
    return (
        f"rollout.workload.kept_share={begin}",
        f"rollout.workload.kept_share_end={end}",
        f"rollout.workload.kept_course={course}",
    )


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        _paced("steady", "rollout.workload.kept_share=0.7", bar=0.99, settled_bar=0.98),
        _paced("kept-rises", *_drifting(0.25, 1.0), bar=1.08, start=9, start_bar=1.3),
        _paced("kept-falls", *_drifting(1.0, 0.25), bar=1.05, start=6, start_bar=1.3),
        _paced("square-wave", *_drifting(1.0, 0.4, "square"), bar=1.0),
        Scenario(
            name="default",
            run_file="conf/rlhf.yaml",
            settings=(),
            num_steps=60,
            splits=(1, 2, 3),
            start=2,
            bar=0.97,
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run, done or to be done."""

    scenario: Scenario
    seed: int
    num_rollout: int | None
    """Of a static run; None with the manager's moves."""

    @property
    def name(self) -> str:
        """Of its folder."""
        split = "moves" if self.num_rollout is None else f"static-{self.num_rollout}"
        return f"{self.scenario.name}-{split}-{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run came to."""

    name: str
    seed: int
    num_rollout: int | None
    span_s: float
    """From the end of the first step to the end of the last that counts."""
    settled_rate: float | None
    """Steps a second after ``SETTLING_S`` of that span."""
    num_moves: int
    overrun_share: float | None
    counts: bool
    """The host kept up."""
    rewards: tuple[float, ...]
    """Mean of each step."""


def main() -> int:
    """Do the runs that are missing, and compare."""
    arguments = _parse()
    folder = Path(arguments.folder or tempfile.mkdtemp(prefix="coscheduling-")).absolute()
    print(f"runs: {folder}", file=sys.stderr)
    checks: list[dict[str, Any]] = []
    scenarios: list[dict[str, Any]] = []
    for name in arguments.scenario:
        scenario = SCENARIOS[name]
        outcomes = []
        for trial in _trials(scenario, arguments.seeds, arguments.splits):
            _run(trial, folder, arguments)
            outcomes.append(_outcome(trial, folder / trial.name))
            print(_line(outcomes[-1]), flush=True)
        found = compare(scenario, outcomes)
        print(render(scenario, found), flush=True)
        checks += found
        scenarios.append({"scenario": asdict(scenario), "runs": [asdict(outcome) for outcome in outcomes]})
    if arguments.json:
        result = {**circumstances(), "dilation": arguments.dilation, "scenarios": scenarios, "checks": checks}
        Path(arguments.json).write_text(json.dumps(result, indent=1), encoding="utf-8")
    return 0 if all(check["met"] for check in checks) else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks/coscheduling.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scenario", nargs="+", default=list(SCENARIOS), choices=list(SCENARIOS), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--splits", type=_numbers, help="rollout slots of the static runs (default: all)")
    parser.add_argument("--steps", type=int, help="training steps of each run (default: the scenario's)")
    parser.add_argument("--dilation", type=float, help="of paced runs: seconds a modelled second (default: the file's)")
    parser.add_argument("--folder", help="where runs are kept, and found again")
    parser.add_argument("--json", metavar="FILE", help="write everything that was measured there")
    return parser.parse_args()


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _trials(scenario: Scenario, num_seeds: int, splits: tuple[int, ...] | None) -> list[Trial]:
    """Seed by seed, so that what changes on the machine meets all splits alike."""
    return [
        Trial(scenario=scenario, seed=seed, num_rollout=split)
        for seed in range(num_seeds)
        for split in (None, *(splits or scenario.splits))
    ]


def _run(trial: Trial, folder: Path, arguments: argparse.Namespace) -> None:
    scenario = trial.scenario
    settings = [
        *scenario.settings,
        f"num_steps={arguments.steps or scenario.num_steps}",
        f"seed={trial.seed}",
        f"pool.num_initial_rollout={scenario.start if trial.num_rollout is None else trial.num_rollout}",
        "manager=rate_matching" if trial.num_rollout is None else "manager=static",
    ]
    if arguments.dilation and scenario.run_file == "conf/paced.yaml":
        settings.append(f"pool.pacing.dilation={arguments.dilation}")
    launch(scenario.run_file, *settings, name=trial.name, folder=folder)


def _outcome(trial: Trial, folder: Path) -> Outcome:
    summary, steps = read_summary(folder), read_steps(folder)
    ends_s = [row["training/time_s"] for row in steps]
    settled = [end_s for end_s in ends_s if end_s >= ends_s[0] + SETTLING_S]
    return Outcome(
        name=trial.name,
        seed=trial.seed,
        num_rollout=trial.num_rollout,
        span_s=ends_s[-1] - ends_s[0],
        settled_rate=(len(settled) - 1) / (settled[-1] - settled[0]) if len(settled) > 2 else None,
        num_moves=int(summary["moves_to_train"] + summary["moves_to_rollout"]),
        overrun_share=summary["overrun_share"],
        counts=not summary["host_was_bottleneck"],
        rewards=tuple(row["critic/rewards/mean"] for row in steps),
    )


def compare(scenario: Scenario, outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Rates with moves against those of static splits, from medians over the seeds; one check for each bar."""
    counted = [outcome for outcome in outcomes if outcome.counts]
    splits = sorted({outcome.num_rollout for outcome in counted if outcome.num_rollout is not None})
    spans_s = {split: _median_span_s(counted, split) for split in (None, *splits)}
    moving_s = spans_s.pop(None)
    if moving_s is None or not spans_s:
        return [_check(f"{scenario.name}: runs that count", float(len(counted)), float(len(outcomes)))]
    best = min(spans_s, key=lambda split: spans_s[split] or float("inf"))
    checks = [_check(f"{scenario.name}: rate ÷ best static ({best})", _ratio(spans_s[best], moving_s), scenario.bar)]
    if scenario.start_bar is not None and scenario.start in spans_s:
        at_start = _ratio(spans_s[scenario.start], moving_s)
        checks.append(_check(f"{scenario.name}: rate ÷ static of the start", at_start, scenario.start_bar))
    if scenario.settled_bar is not None:
        rates = {split: _median_settled_rate(counted, split) for split in (None, best)}
        checks.append(
            _check(
                f"{scenario.name}: rate after {SETTLING_S:.0f} s ÷ best static",
                _ratio(rates[None], rates[best]),
                scenario.settled_bar,
            )
        )
    same = reward_p_value(counted, best)
    if same is not None:
        checks.append(_check(f"{scenario.name}: same rewards by trained tokens, p", same, 0.05))
    return checks


def reward_p_value(outcomes: Sequence[Outcome], best: int | None) -> float | None:
    """Whether rewards at the same step, hence after as many trained groups, differ between runs with moves and those
    of the best static split: two-sided p of a paired t-test over seeds, of the mean over all steps. None with fewer
    than three seeds."""
    from scipy.stats import ttest_rel

    by_split = {
        split: {outcome.seed: statistics.mean(outcome.rewards) for outcome in outcomes if outcome.num_rollout == split}
        for split in (None, best)
    }
    seeds = sorted(by_split[None].keys() & by_split[best].keys())
    if len(seeds) < 3:
        return None
    moving, static = ([by_split[split][seed] for seed in seeds] for split in (None, best))
    return 1.0 if moving == static else float(ttest_rel(moving, static).pvalue)


def _median_span_s(outcomes: Sequence[Outcome], split: int | None) -> float | None:
    spans_s = [outcome.span_s for outcome in outcomes if outcome.num_rollout == split]
    return statistics.median(spans_s) if spans_s else None


def _median_settled_rate(outcomes: Sequence[Outcome], split: int | None) -> float | None:
    rates = [
        outcome.settled_rate
        for outcome in outcomes
        if outcome.num_rollout == split and outcome.settled_rate is not None
    ]
    return statistics.median(rates) if rates else None


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def _check(name: str, value: float | None, bar: float) -> dict[str, Any]:
    return {"name": name, "value": value, "bar": bar, "met": value is not None and value >= bar}


def _line(outcome: Outcome) -> str:
    paced = "" if outcome.overrun_share is None else f", {outcome.overrun_share:.1%} late"
    counted = "" if outcome.counts else ": the host was the bottleneck, not counted"
    return f"{outcome.name}: {outcome.span_s:.1f} s, {outcome.num_moves} moves{paced}{counted}"


def render(scenario: Scenario, checks: Sequence[dict[str, Any]]) -> str:
    """The checks of a scenario, for people."""
    lines = [
        f"  {'met   ' if check['met'] else 'MISSED'} {check['name']}: "
        f"{'not measured' if check['value'] is None else format(check['value'], '.3f')} (bar {check['bar']:g})"
        for check in checks
    ]
    return "\n".join([scenario.name, *lines])


if __name__ == "__main__":
    sys.exit(main())
