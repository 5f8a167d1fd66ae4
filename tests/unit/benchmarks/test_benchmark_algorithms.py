"""The benchmarks of recipes and of what papers claim of them, on runs that lie there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import algorithm_claims
import algorithms
import pytest
from launches import ROOT

from rlserve.config import load

SCORES = (0.25, 0.25, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0)


def write_run(folder: Path, scores: Sequence[float], *, answers: Sequence[dict[str, Any]] = ()) -> None:
    """A run that ended."""
    folder.mkdir(parents=True)
    rows: list[dict[str, float]] = [{"step": 0, "val-core/held_out/mean@1": 0.25}]
    rows += [
        {
            "training/global_step": float(step),
            "timing_s/step": 1.0,
            "critic/score/mean": score,
            "actor/entropy": 0.5,
            "actor/pg_clipfrac": 0.125,
            "actor/grad_norm": 2.0,
            "response_length/mean": 30.0,
            "response_length/clip_ratio": 0.0,
        }
        for step, score in enumerate(scores, start=1)
    ]
    summary = {
        "num_steps": len(scores),
        "held_out_before": 0.25,
        "held_out_after": scores[-1],
        "seconds_total": 20.0,
    }
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    (folder / "answers.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in answers), encoding="utf-8")
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    (folder / "config.yaml").write_text(f"num_steps: {len(scores)}\n", encoding="utf-8")


def answer(step: int, reward: float, num_tokens: int, *, kind: str = "training") -> dict[str, Any]:
    return {"step": step, "kind": kind, "reward": reward, "num_response_tokens": num_tokens, "reference": "3,2,1"}


def test_every_recipe_of_the_folder_is_run_with_what_loads() -> None:
    recipes = algorithms.read_recipes(algorithms.RECIPES, None)
    in_folder = {path.stem for path in algorithms.RECIPES.glob("*.yaml")}
    assert [recipe.name for recipe in recipes] == sorted(in_folder - {"sft", "reward_model"})
    for recipe in recipes:
        config = load(str(ROOT / algorithms.RUN_FILE), [*algorithms.SETTINGS, *recipe.settings], discovered={}).config
        assert config.num_steps == recipe.num_steps
        assert config.trainer.critic_warmup_steps in (0, algorithms.NUM_CRITIC_WARMUP_STEPS)
    (ppo, vapo) = algorithms.read_recipes(algorithms.RECIPES, ["vapo", "ppo"])
    assert (ppo.num_seeds, ppo.num_steps, vapo.num_seeds, vapo.num_steps) == (3, 60, 1, 60)
    assert vapo.settings[2:] == ("trainer.critic_warmup_steps=5", "algorithm.length_adaptive_alpha=1.0")
    with pytest.raises(SystemExit, match="chess; there are cispo, "):
        algorithms.read_recipes(algorithms.RECIPES, ["chess"])


def test_runs_that_lie_there_are_judged_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "runs" / "opo-0", SCORES)
    write_run(tmp_path / "runs" / "sapo-0", [0.25] * 8)
    out, png = tmp_path / "out.json", tmp_path / "out.png"
    arguments = ["--recipe", "sapo", "opo", "--folder", str(tmp_path / "runs"), "--json", str(out), "--png", str(png)]
    assert algorithms.main(arguments) == 1
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["checks"] == [
        {"name": "opo, seed 0: held-out", "value": 1.0, "bar": 0.9, "met": True},
        {"name": "sapo, seed 0: held-out", "value": 0.25, "bar": 0.9, "met": False},
    ]
    assert found["runs"][0]["scores"] == list(SCORES)
    text = capsys.readouterr().out
    assert "| `opo` | 8 | 1.000 | 6 |" in text
    assert "| `sapo` | 8 | 0.250 | – |" in text
    assert png.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("variant", algorithm_claims.VARIANTS)
def test_every_variant_loads(variant: str) -> None:
    overrides = [*algorithm_claims.SETTINGS, *algorithm_claims.VARIANTS[variant]]
    config = load(str(ROOT / algorithm_claims.RUN_FILE), overrides, discovered={}).config
    assert config.model.path == config.data.path == "builtin:countdown"
    assert config.reward.function == "rlserve.tasks.countdown:reward"


def test_every_variant_is_of_a_claim() -> None:
    assert set(sum(algorithm_claims.CLAIMS.values(), ())) == set(algorithm_claims.VARIANTS)


def test_a_course_leaves_out_the_steps_of_the_critic_alone(tmp_path: Path) -> None:
    answers = [answer(2, 0.0, 3), answer(2, 0.0, 9), answer(2, 1.0, 6), answer(2, 0.0, 60, kind="held_out")]
    write_run(tmp_path / "run", SCORES, answers=[*answers, answer(3, 1.0, 6)])
    course = algorithm_claims.read_course(tmp_path / "run", "warm", 7, 1)
    assert course.scores == SCORES[1:]
    assert course.wrong_lengths == (1.0, *[None] * 6)
    assert (course.seed, course.held_out_after, course.explained) == (7, 1.0, ())


def test_the_largest_drop_is_from_any_earlier_height() -> None:
    assert algorithm_claims.largest_drop([0.0] * 5 + [1.0] * 5 + [0.5] * 10) == pytest.approx(0.5)
    assert algorithm_claims.largest_drop(SCORES) == pytest.approx(0.0)


def test_variants_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for variant, scores in (("cold", [0.5] * 50), ("warm", [0.0] * 10 + [0.75] * 50)):
        for seed in range(2):
            write_run(tmp_path / f"{variant}-{seed}", scores, answers=[answer(11, 0.0, 9)])
    out = tmp_path / "out.json"
    arguments = ["--claim", "critic warm-up", "--seeds", "2", "--folder", str(tmp_path), "--json", str(out)]
    assert algorithm_claims.main(arguments) == 0
    row = "| `warm` | 0.75 (0.75–0.75) | 0.75 (0.75–0.75) | 0.75 (0.75–0.75) | 500 (500–500) | 1.5 (1.5–1.5) |"
    assert row in capsys.readouterr().out
    runs = json.loads(out.read_text(encoding="utf-8"))["runs"]
    assert {name: [run["seed"] for run in found] for name, found in runs.items()} == {"cold": [0, 1], "warm": [0, 1]}
