"""Draw what the three runs came to.

python examples/reward_model/picture.py runs/warm runs/judge runs/rlhf --to reward_model.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

HELD_OUT = "val-core/held_out"


def curve(run: Path, name: str) -> tuple[list[float], list[float]]:
    """Steps and values of a metric."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    found = [(line["step"], line[name]) for line in lines if name in line]
    return [step for step, _ in found], [value for _, value in found]


def draw(axes: Axes, run: Path, title: str, curves: dict[str, str]) -> None:
    """Some metrics of a run; those of held-out rows and prompts as points."""
    for name, label in curves.items():
        style = "o-" if name.startswith("val") else "-"
        axes.plot(*curve(run, name), style, label=label, markersize=4, linewidth=1.2)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("step")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs=3, metavar="RUN")
    parser.add_argument("--to", type=Path, required=True)
    arguments = parser.parse_args()
    warm, judge, rlhf = arguments.runs
    _, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    draw(left, warm, "1. demonstrations: loss", {"train/loss": "of a step", "val/loss": "held out"})
    draw(middle, judge, "2. preferences: accuracy", {"train/accuracy": "of a step", "val/accuracy": "held out"})
    draw(
        right,
        rlhf,
        "3. PPO",
        {
            "reward/judge/mean": "reward model's score",
            "reward/truth/mean": "true quality",
            f"{HELD_OUT}/truth/mean@1": "true quality, held out, greedy",
            "critic/kl": "KL to the warm start, nats a token",
        },
    )
    plt.savefig(arguments.to, dpi=110)


if __name__ == "__main__":
    main()
