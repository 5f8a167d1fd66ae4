"""What papers claim of algorithms, on long answers with a rare reward: whole runs that differ in one setting.

python benchmarks/algorithm_claims.py [--claim NAME ...] [--seeds N] [--folder DIR] [--json FILE]

Each trains ``builtin:countdown`` on two CPU processes, one that trains and one that rolls out, which keep their roles.
A variant that several claims look at is run once, and runs that lie in ``--folder`` already are not done again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from launches import launch, read_steps, read_summary
from machine import circumstances

from rlserve.tracking.jsonl import read_json_lines

RUN_FILE = "conf/rlhf.yaml"
SETTINGS = ("data=countdown", "pool=two", "manager=static", "tracking.samples=all")
NUM_STEPS = 50
"""In which the policy learns."""
NUM_CRITIC_WARMUP_STEPS = 10

_CRITIC = ("algorithm=ppo", "algorithm.critic_gae_lambda=1.0")
_WARM = (*_CRITIC, f"trainer.critic_warmup_steps={NUM_CRITIC_WARMUP_STEPS}")
_UPDATES = "algorithm.num_mini_batches=8"
"""Without several in a step, ratios are 1 and nothing is clipped."""
_CLIPPED = ("algorithm=grpo", "algorithm.loss_agg_mode=token-mean", _UPDATES)
VARIANTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "ppo": ("algorithm=ppo",),
        "cold": _CRITIC,
        "warm": _WARM,
        "lambda-1": (*_WARM, "algorithm.gae_lambda=1.0"),
        "alpha-0.05": (*_WARM, "algorithm.length_adaptive_alpha=0.05"),
        "alpha-1": (*_WARM, "algorithm.length_adaptive_alpha=1.0"),
        "clip-0.2": _CLIPPED,
        "clip-0.28": (*_CLIPPED, "algorithm.clip_ratio_high=0.28"),
        "clip-0.2-4-epochs": (*_CLIPPED, "algorithm.num_epochs=4"),
        "clip-0.28-4-epochs": (*_CLIPPED, "algorithm.clip_ratio_high=0.28", "algorithm.num_epochs=4"),
        "token-mean": ("algorithm=grpo", "algorithm.loss_agg_mode=token-mean"),
        "sequence-mean": ("algorithm=grpo", "algorithm.loss_agg_mode=seq-mean-token-mean"),
        "sum-norm": ("algorithm=dr_grpo", "algorithm.scale_rewards=group"),
        "ratio-token": ("algorithm=grpo", _UPDATES),
        "ratio-sequence": ("algorithm=gspo", _UPDATES),
    }
)
CLAIMS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "critic warm-up": ("cold", "warm"),
        "lambda": ("warm", "lambda-1", "alpha-0.05", "alpha-1"),
        "critic's lambda": ("ppo", "cold"),
        "clip-higher": ("clip-0.2", "clip-0.28", "clip-0.2-4-epochs", "clip-0.28-4-epochs"),
        "aggregation": ("token-mean", "sequence-mean", "sum-norm"),
        "ratio": ("ratio-token", "ratio-sequence"),
    }
)


@dataclass(frozen=True, kw_only=True)
class Course:
    """A run by its steps, those left out in which the critic alone learned."""

    variant: str
    seed: int
    held_out_after: float
    """Share of held-out prompts that are right after training."""
    scores: tuple[float, ...]
    """Mean reward."""
    entropies: tuple[float, ...]
    """Nats per token."""
    wrong_lengths: tuple[float | None, ...]
    """Mean tokens of wrong answers, as a share of those of the right ones to the same prompts; None without any."""
    cut_shares: tuple[float, ...]
    """Of the answers, by the limit of length."""
    clip_fractions: tuple[float, ...]
    """Of the tokens."""
    gradient_norms: tuple[float, ...]
    """Of the policy, before it is clipped."""
    explained: tuple[float, ...]
    """Share of the returns' variance that the critic explains; empty without one."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do the runs that are missing, and compare."""
    options = _parse(arguments)
    folder = (options.folder or Path(tempfile.mkdtemp(prefix="claims-"))).absolute()
    print(f"runs: {folder}", file=sys.stderr)
    claims = {name: CLAIMS[name] for name in options.claim}
    courses: dict[str, list[Course]] = {name: [] for name in dict.fromkeys(sum(claims.values(), ()))}
    for seed in range(options.seeds):
        for variant, found in courses.items():
            found.append(_run(variant, seed, folder))
            print(f"{variant}, seed {seed}: held-out {found[-1].held_out_after:.3f}", flush=True)
    for name, variants in claims.items():
        print(f"\n{name}\n\n{table({variant: courses[variant] for variant in variants})}")
    if options.json:
        runs = {name: [asdict(course) for course in found] for name, found in courses.items()}
        result = {**circumstances(), "settings": SETTINGS, "variants": dict(VARIANTS), "claims": claims, "runs": runs}
        Path(options.json).write_text(json.dumps(result, indent=1), encoding="utf-8")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks/algorithm_claims.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--claim", nargs="+", choices=list(CLAIMS), default=list(CLAIMS), help="only these")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where runs are kept, and found again")
    parser.add_argument("--json", metavar="FILE", help="write everything that was measured there")
    return parser.parse_args(arguments)


def _run(variant: str, seed: int, folder: Path) -> Course:
    num_warmup_steps = NUM_CRITIC_WARMUP_STEPS if VARIANTS[variant][: len(_WARM)] == _WARM else 0
    name = f"{variant}-{seed}"
    settings = (*SETTINGS, *VARIANTS[variant], f"num_steps={NUM_STEPS + num_warmup_steps}", f"seed={seed}")
    launch(RUN_FILE, *settings, name=name, folder=folder)
    return read_course(folder / name, variant, seed, num_warmup_steps)


def read_course(folder: Path, variant: str, seed: int, num_warmup_steps: int) -> Course:
    """That of the run in ``folder``, without its first steps."""
    steps = read_steps(folder)[num_warmup_steps:]
    lengths = read_wrong_lengths(folder)
    return Course(
        variant=variant,
        seed=seed,
        held_out_after=read_summary(folder)["held_out_after"],
        scores=tuple(step["critic/score/mean"] for step in steps),
        entropies=tuple(step["actor/entropy"] for step in steps),
        wrong_lengths=tuple(lengths.get(int(step["training/global_step"])) for step in steps),
        cut_shares=tuple(step["response_length/clip_ratio"] for step in steps),
        clip_fractions=tuple(step["actor/pg_clipfrac"] for step in steps),
        gradient_norms=tuple(step["actor/grad_norm"] for step in steps),
        explained=tuple(
            step["critic/vf_explained_var"] for step in steps if step.get("critic/vf_explained_var") is not None
        ),
    )


def read_wrong_lengths(folder: Path) -> dict[int, float]:
    """By step, the tokens of wrong answers as a share of those of right ones, which have one more than characters."""
    ratios: dict[int, list[float]] = {}
    for answer in read_json_lines(folder / "answers.jsonl"):
        if answer["kind"] == "training" and answer["reward"] == 0.0:
            ratio = answer["num_response_tokens"] / (len(answer["reference"]) + 1)
            ratios.setdefault(answer["step"], []).append(ratio)
    return {step: float(np.mean(found)) for step, found in ratios.items()}


FIGURES: Mapping[str, Callable[[Course], float]] = MappingProxyType(
    {
        "held-out": lambda course: course.held_out_after,
        "mean reward": lambda course: float(np.mean(course.scores)),
        "of the first quarter": lambda course: float(np.mean(course.scores[: len(course.scores) // 4])),
        "entropy, millinats": lambda course: 1e3 * float(np.mean(course.entropies)),
        "wrong answers' length": lambda course: float(np.mean(list(filter(None, course.wrong_lengths)))),
        "cut, %": lambda course: 1e2 * float(np.mean(course.cut_shares)),
        "clipped tokens, %": lambda course: 1e2 * float(np.mean(course.clip_fractions)),
        "largest drop": lambda course: largest_drop(course.scores),
    }
)
"""Of a course, over all its steps where none are said."""


def largest_drop(scores: Sequence[float]) -> float:
    """The most that the mean of five steps fell below what an earlier one had been."""
    means = np.convolve(scores, np.full(5, 0.2), mode="valid")
    return float((np.maximum.accumulate(means) - means).max())


def table(courses: Mapping[str, Sequence[Course]]) -> str:
    """In Markdown: of each variant and figure the mean over the seeds, and the least and the most."""
    rows = [f"| variant | {' | '.join(FIGURES)} |", "|---" * (len(FIGURES) + 1) + "|"]
    for variant, found in courses.items():
        values = [[figure(course) for course in found] for figure in FIGURES.values()]
        cells = (f"{np.mean(seeds):.3g} ({min(seeds):.3g}–{max(seeds):.3g})" for seeds in values)
        rows.append(f"| `{variant}` | {' | '.join(cells)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
