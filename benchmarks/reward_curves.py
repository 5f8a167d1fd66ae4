"""Whether moves change what a run learns: rewards by trained tokens, of runs that move slots and of runs that do not.

python benchmarks/reward_curves.py [--seeds N] [--steps N] [--folder DIR] [--json FILE] [--png FILE]

Both kinds are the default run on two cores from the same split: with ``manager=eager``, which moves a slot every few
seconds, and with ``manager=static``. Runs of one seed begin with the same weights, see the same prompts in the same
order and draw the same random numbers, so they are compared in pairs: what differs between seeds is many times what
differs within one. In three ways:

- area: the mean reward over the trained tokens that all runs have; exact permutation test, swapping within pairs
- shape: the largest distance between the mean curves, which also finds curves that cross; the same test
- bound: the 95 % confidence interval of the difference of areas (paired t). The tests may miss what they are too weak
  to see; this says how large that can be, as a share of what static runs learn from their first tenth to their last

With fewer than six pairs no permutation test can find anything at 5 %. Runs that lie in ``--folder`` already are not
done again, and may have been stopped at another step: curves are cut where the shortest ends.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from launches import launch, read_steps, read_summary
from machine import circumstances
from numpy.typing import NDArray

RUN_FILE = "conf/rlhf.yaml"
POLICIES = {"moves": "eager", "static": "static"}
MIN_PAIRS = 6
NUM_POINTS = 20
"""Of a curve: each is the mean reward of a twentieth of the tokens."""
LEAST_P = 0.05
LARGEST_BOUND = 0.1
"""Of what static runs learn."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The rewards of one run."""

    seed: int
    num_moves: int
    num_tokens: tuple[int, ...]
    """Trained until the end of each step."""
    rewards: tuple[float, ...]
    """Mean of each step."""
    held_out: float | None = None
    """Share of held-out prompts that are right after training."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Curves of runs with moves against those of static runs. Differences are with moves minus static."""

    num_pairs: int
    difference: float
    """Of the mean rewards over all trained tokens."""
    low: float
    """Of its 95 % confidence interval, as ``high``."""
    high: float
    learned: float
    """What static runs learn: mean reward of their last tenth of tokens minus that of their first."""
    area_p: float
    shape_distance: float
    shape_p: float

    @property
    def bound(self) -> float:
        """The largest difference that the runs leave possible, as a share of what is learned."""
        return max(abs(self.low), abs(self.high)) / self.learned if self.learned > 0 else float("inf")


def main() -> int:
    """Do the runs that are missing, and compare."""
    arguments = _parse()
    folder = Path(arguments.folder or tempfile.mkdtemp(prefix="reward-curves-")).absolute()
    print(f"runs: {folder}", file=sys.stderr)
    curves: dict[str, list[Curve]] = {kind: [] for kind in POLICIES}
    for seed in range(arguments.seeds):
        for kind, policy in POLICIES.items():
            name = f"default-{kind}-{seed}"
            settings = (f"manager={policy}", f"seed={seed}", f"num_steps={arguments.steps}")
            launch(RUN_FILE, *settings, "pool.num_initial_rollout=2", name=name, folder=folder)
            curves[kind].append(read_curve(folder / name, seed))
            print(_line(kind, curves[kind][-1]), flush=True)
    comparison = compare_curves(curves["moves"], curves["static"])
    checks = make_checks(curves["moves"], comparison)
    print(render(comparison, checks))
    if arguments.json:
        runs = {kind: [asdict(curve) for curve in found] for kind, found in curves.items()}
        result = {**circumstances(), "comparison": asdict(comparison), "checks": checks, "runs": runs}
        Path(arguments.json).write_text(json.dumps(result, indent=1), encoding="utf-8")
    if arguments.png:
        draw(curves["moves"], curves["static"], comparison, Path(arguments.png))
    return 0 if all(check["met"] for check in checks) else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks/reward_curves.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=60, help="training steps of each run")
    parser.add_argument("--folder", help="where runs are kept, and found again")
    parser.add_argument("--json", metavar="FILE", help="write everything that was measured there")
    parser.add_argument("--png", metavar="FILE", help="draw the curves there")
    return parser.parse_args()


def read_curve(folder: Path, seed: int) -> Curve:
    """That of the run in ``folder``."""
    summary, steps = read_summary(folder), read_steps(folder)
    return Curve(
        seed=seed,
        num_moves=int(summary["moves_to_train"] + summary["moves_to_rollout"]),
        num_tokens=tuple(accumulate(int(step["perf/total_num_tokens"]) for step in steps)),
        rewards=tuple(step["critic/rewards/mean"] for step in steps),
        held_out=summary["held_out_after"],
    )


def resample(curves: Sequence[Curve]) -> NDArray[np.float64]:
    """Mean rewards of equal stretches of trained tokens, up to where every run has come: [curves, NUM_POINTS].

    A step's reward counts for the tokens trained in it, so a stretch takes the part of a step that lies in it.
    """
    last = min(curve.num_tokens[-1] for curve in curves)
    edges = np.linspace(0.0, last, NUM_POINTS + 1)
    rows = []
    for curve in curves:
        ends = np.array((0, *curve.num_tokens), dtype=np.float64)
        sums = np.concatenate(([0.0], np.cumsum(np.diff(ends) * np.array(curve.rewards))))
        rows.append(np.diff(np.interp(edges, ends, sums)) / np.diff(edges))
    return np.array(rows)


def compare_curves(moving: Sequence[Curve], static: Sequence[Curve]) -> Comparison:
    """All three comparisons; curves in the same place are a pair. With up to 14 pairs every swap is tried."""
    from scipy.stats import permutation_test, ttest_rel

    assert [curve.seed for curve in moving] == [curve.seed for curve in static]
    points, num_pairs = resample([*moving, *static]), len(moving)
    with_moves, without = points[:num_pairs], points[num_pairs:]

    def area_difference(one: NDArray[np.float64], other: NDArray[np.float64], axis: int) -> Any:
        return (one - other).mean(axis=axis)

    def distance(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
        return float(np.abs(points[one].mean(axis=0) - points[other].mean(axis=0)).max())

    areas = with_moves.mean(axis=1), without.mean(axis=1)
    swaps = {"permutation_type": "samples", "n_resamples": 2**14, "rng": np.random.default_rng(0)}
    area = permutation_test(areas, area_difference, vectorized=True, alternative="two-sided", **swaps)
    # it permutes numbers, not curves: so it is given which curves are meant
    numbers = np.arange(num_pairs), num_pairs + np.arange(num_pairs)
    shape = permutation_test(numbers, distance, vectorized=False, alternative="greater", **swaps)
    interval = ttest_rel(*areas).confidence_interval(0.95)
    tenth = NUM_POINTS // 10
    return Comparison(
        num_pairs=num_pairs,
        difference=float(area.statistic),
        low=float(interval.low),
        high=float(interval.high),
        learned=float(without[:, -tenth:].mean() - without[:, :tenth].mean()),
        area_p=float(area.pvalue),
        shape_distance=float(shape.statistic),
        shape_p=float(shape.pvalue),
    )


def make_checks(moving: Sequence[Curve], comparison: Comparison) -> list[dict[str, Any]]:
    """One for each bar; runs that moved nothing prove nothing."""
    fewest = min(curve.num_moves for curve in moving)
    rows = (
        ("pairs of runs", comparison.num_pairs, MIN_PAIRS, comparison.num_pairs >= MIN_PAIRS),
        ("fewest moves of a run with moves", fewest, 2, fewest >= 2),
        ("same area, p", comparison.area_p, LEAST_P, comparison.area_p >= LEAST_P),
        ("same shape, p", comparison.shape_p, LEAST_P, comparison.shape_p >= LEAST_P),
        ("largest possible difference ÷ learned", comparison.bound, LARGEST_BOUND, comparison.bound <= LARGEST_BOUND),
    )
    return [{"name": f"rewards: {name}", "value": value, "bar": bar, "met": met} for name, value, bar, met in rows]


def render(comparison: Comparison, checks: Sequence[dict[str, Any]]) -> str:
    """The outcome, for people."""
    lines = [
        f"  {'met   ' if check['met'] else 'MISSED'} {check['name']}: {check['value']:.3f} (bar {check['bar']:g})"
        for check in checks
    ]
    return "\n".join([f"with moves minus static: {_difference(comparison)}", *lines])


def draw(moving: Sequence[Curve], static: Sequence[Curve], comparison: Comparison, path: Path) -> None:
    """Each run thin, the mean of its kind thick."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    points = resample([*moving, *static])
    last = min(curve.num_tokens[-1] for curve in (*moving, *static))
    tokens = (np.arange(NUM_POINTS) + 0.5) * last / NUM_POINTS / 1000
    fewest, most = (find(curve.num_moves for curve in moving) for find in (min, max))
    labels = (f"with {fewest} to {most} moves ({len(moving)} runs)", f"static ({len(static)} runs)")
    for rows, label, colour in zip((points[: len(moving)], points[len(moving) :]), labels, ("C1", "C0"), strict=True):
        axes.plot(tokens, rows.T, color=colour, linewidth=0.6, alpha=0.5)
        axes.plot(tokens, rows.mean(axis=0), color=colour, linewidth=2.2, label=label)
    axes.set(xlabel="trained tokens, thousands", ylabel="mean reward", title=_difference(comparison))
    axes.title.set_fontsize(10)
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def _difference(comparison: Comparison) -> str:
    return (
        f"mean reward {comparison.difference:+.4f} (95 % {comparison.low:+.4f} to {comparison.high:+.4f}) "
        f"of {comparison.learned:.2f} learned; p: area {comparison.area_p:.2f}, shape {comparison.shape_p:.2f}"
    )


def _line(kind: str, curve: Curve) -> str:
    held_out = "" if curve.held_out is None else f", held-out {curve.held_out:.3f}"
    return f"seed {curve.seed}, {kind}: {curve.num_moves} moves, reward {np.mean(curve.rewards):.4f}{held_out}"


if __name__ == "__main__":
    sys.exit(main())
