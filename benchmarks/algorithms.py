"""What every recipe of conf/algorithm learns: whole runs of the default task from the same warm start.

python benchmarks/algorithms.py [--recipe NAME ...] [--folder DIR] [--json FILE] [--png FILE]

Each recipe trains on two CPU processes, one that trains and one that rolls out, which keep their roles. Recipes are the
files of the folder, so a new one is run too, but for those that learn from a data set. Runs that lie in ``--folder``
already are not done again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from checks import Check
from launches import ROOT, launch, read_steps, read_summary
from machine import circumstances
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rlserve.tracking import colours
from rlserve.tracking.report.png import STYLE
from rlserve.trainers.algorithms.supervised.config import SupervisedConfig

RUN_FILE = "conf/rlhf.yaml"
SETTINGS = ("pool=two", "manager=static")
RECIPES = ROOT / "conf" / "algorithm"
NOT_FROM_REWARDS = {config_type.name for config_type in SupervisedConfig.__subclasses__()}
NUM_SEEDS = {"ppo": 3, "grpo": 3, "dapo": 3, "rloo": 3}
"""Of these; of the others one."""
NUM_STEPS, NUM_STEPS_WITH_CRITIC = 40, 60
NUM_CRITIC_WARMUP_STEPS = 5
"""Where a recipe warms up, in the place of the 50 of a long run."""
LENGTH_ADAPTIVE_ALPHA = 1.0
"""Where a recipe adapts lambda to lengths: its 0.05 is for thousands of tokens, and makes lambda 0 up to 20 of them."""
LEAST_HELD_OUT = 0.9
NUM_COLUMNS = 6
DOTS_PER_INCH = 110


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One file of the folder, and how it is run."""

    name: str
    num_seeds: int
    num_steps: int
    settings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run learned."""

    recipe: str
    seed: int
    held_out_before: float
    held_out_after: float
    """Shares of the held-out prompts that are right before training and after it."""
    scores: tuple[float, ...]
    """Mean reward of each step."""
    entropies: tuple[float, ...]
    """Nats per token, of each step."""
    response_lengths: tuple[float, ...]
    """Mean tokens of an answer, of each step."""
    seconds: float
    """From the start of the launcher to its end."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do the runs that are missing; 1 where one learned too little."""
    options = _parse(arguments)
    folder = (options.folder or Path(tempfile.mkdtemp(prefix="algorithms-"))).absolute()
    print(f"runs: {folder}", file=sys.stderr)
    found: list[Run] = []
    for recipe in read_recipes(RECIPES, options.recipe):
        for seed in range(recipe.num_seeds):
            name = f"{recipe.name}-{seed}"
            launch(RUN_FILE, *SETTINGS, *recipe.settings, f"seed={seed}", name=name, folder=folder)
            found.append(read_run(folder / name, recipe.name, seed))
            print(line(found[-1]), flush=True)
    checks = make_checks(found)
    print(table(found))
    if options.json:
        result = {**circumstances(), "checks": [check.line() for check in checks], "runs": list(map(asdict, found))}
        Path(options.json).write_text(json.dumps(result, indent=1), encoding="utf-8")
    if options.png:
        draw(found, Path(options.png))
    return 0 if all(check.met for check in checks) else 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks/algorithms.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", nargs="+", metavar="NAME", help="only these; all of conf/algorithm otherwise")
    parser.add_argument("--folder", type=Path, help="where runs are kept, and found again")
    parser.add_argument("--json", metavar="FILE", help="write everything that was measured there")
    parser.add_argument("--png", metavar="FILE", help="draw the learning curves there")
    return parser.parse_args(arguments)


def read_recipes(folder: Path, wanted: Sequence[str] | None) -> list[Recipe]:
    """The recipes of a folder of YAML files, or those of them that are wanted, by name."""
    paths = {path.stem: path for path in sorted(folder.glob("*.yaml")) if path.stem not in NOT_FROM_REWARDS}
    if unknown := set(wanted or ()) - paths.keys():
        sys.exit(f"no recipe of {folder}: {', '.join(sorted(unknown))}; there are {', '.join(paths)}")
    return [_read_recipe(path) for name, path in paths.items() if wanted is None or name in wanted]


def _read_recipe(path: Path) -> Recipe:
    written: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    has_critic = written.get("algorithm", written)["name"] == "ppo"
    num_steps = NUM_STEPS_WITH_CRITIC if has_critic else NUM_STEPS
    settings = [f"algorithm={path.stem}", f"num_steps={num_steps}"]
    if "critic_warmup_steps" in written.get("trainer", {}):
        settings.append(f"trainer.critic_warmup_steps={NUM_CRITIC_WARMUP_STEPS}")
    if "length_adaptive_alpha" in written.get("algorithm", written):
        settings.append(f"algorithm.length_adaptive_alpha={LENGTH_ADAPTIVE_ALPHA}")
    return Recipe(
        name=path.stem,
        num_seeds=NUM_SEEDS.get(path.stem, 1),
        num_steps=num_steps,
        settings=tuple(settings),
    )


def read_run(folder: Path, recipe: str, seed: int) -> Run:
    """What the run in ``folder`` came to."""
    summary, steps = read_summary(folder), read_steps(folder)
    return Run(
        recipe=recipe,
        seed=seed,
        held_out_before=summary["held_out_before"],
        held_out_after=summary["held_out_after"],
        scores=tuple(step["critic/score/mean"] for step in steps),
        entropies=tuple(step["actor/entropy"] for step in steps),
        response_lengths=tuple(step["response_length/mean"] for step in steps),
        seconds=summary["seconds_total"],
    )


def make_checks(runs: Sequence[Run]) -> list[Check]:
    """One for each run."""
    return [
        Check(name=f"{run.recipe}, seed {run.seed}: held-out", value=run.held_out_after, bar=LEAST_HELD_OUT)
        for run in runs
    ]


def line(run: Run) -> str:
    """A run for people."""
    return (
        f"{run.recipe}, seed {run.seed}: held-out {run.held_out_before:.3f} to {run.held_out_after:.3f} "
        f"in {len(run.scores)} steps, {run.seconds:.0f} s"
    )


def steps_to(run: Run, score: float) -> int | None:
    """Steps until the mean reward of five in a row had reached ``score``; None where it never did."""
    means = np.convolve(run.scores, np.full(5, 0.2), mode="valid")
    reached = np.flatnonzero(means >= score)
    return int(reached[0]) + 5 if len(reached) else None


def table(runs: Sequence[Run]) -> str:
    """In Markdown, one line a recipe."""
    rows = ["| recipe | steps | held-out, by seed | steps to a mean reward of 0.8 |", "|---|---|---|---|"]
    for recipe in dict.fromkeys(run.recipe for run in runs):
        own = [run for run in runs if run.recipe == recipe]
        scores = ", ".join(f"{run.held_out_after:.3f}" for run in own)
        reached = ", ".join(str(steps_to(run, 0.8) or "–") for run in own)
        rows.append(f"| `{recipe}` | {len(own[0].scores)} | {scores} | {reached} |")
    return "\n".join(rows)


def draw(runs: Sequence[Run], path: Path) -> None:
    """A small panel a recipe: the mean reward by step of each of its runs, and the held-out score after them."""
    recipes = list(dict.fromkeys(run.recipe for run in runs))
    num_columns = min(NUM_COLUMNS, len(recipes))
    num_rows = -(-len(recipes) // num_columns)
    with rc_context({**STYLE, "font.size": 7.5, "axes.titlesize": 8.5}):
        figure = Figure(figsize=(1.75 * num_columns + 0.4, 1.45 * num_rows + 0.4), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(num_rows, num_columns, sharey=True, squeeze=False).flat
        for recipe, axes in zip(recipes, panels, strict=False):
            _draw_recipe(axes, [run for run in runs if run.recipe == recipe])
        for axes in list(figure.axes)[len(recipes) :]:
            axes.remove()
        figure.supxlabel("training step", fontsize=8)
        figure.supylabel("mean reward (line), held-out score (dots)", fontsize=8)
        figure.savefig(path, dpi=DOTS_PER_INCH, facecolor="white")


def _draw_recipe(axes: Axes, runs: Sequence[Run]) -> None:
    for run in runs:
        num_steps = len(run.scores)
        axes.plot(np.arange(1, num_steps + 1), run.scores, color=colours.REWARD, linewidth=0.9, alpha=0.75)
        held_out = (run.held_out_before, run.held_out_after)
        axes.plot((0, num_steps), held_out, color=colours.HELD_OUT, linestyle="none", marker="o", markersize=3)
    axes.axhline(LEAST_HELD_OUT, color=colours.MUTED, linewidth=0.6, linestyle="--")
    title = runs[0].recipe.replace("reinforce_plus_plus", "reinforce++")
    axes.set(ylim=(0, 1.03), xlim=(-1, len(runs[0].scores) + 2), title=title)


if __name__ == "__main__":
    sys.exit(main())
