from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from reward_curves import NUM_POINTS, Curve, compare_curves, draw, make_checks, read_curve, render, resample


def curve(seed: int, *, higher_by: float = 0.0, crossing: float = 0.0, num_moves: int = 6, kind: int = 0) -> Curve:
    """A run that learns from 0.3 to 0.9, noisy by its kind; ``crossing`` is learned sooner and lost later. Seeds differ
    more than anything else does."""
    course = np.linspace(0.0, 1.0, 60)
    noise = np.random.default_rng((seed, kind)).normal(0.0, 0.02, 60)
    rewards = 0.3 + 0.6 * course + noise + 0.1 * (seed % 3) + higher_by + crossing * np.sin(2 * np.pi * course)
    return Curve(
        seed=seed,
        num_moves=num_moves,
        num_tokens=tuple(range(1000, 61_000, 1000)),
        rewards=tuple(map(float, rewards)),
    )


def outcome(*, num_pairs: int = 6, **change: float) -> tuple[list[bool], str]:
    moving = [curve(seed, kind=1, **change) for seed in range(num_pairs)]  # type: ignore[arg-type]
    comparison = compare_curves(moving, [curve(seed) for seed in range(num_pairs)])
    checks = make_checks(moving, comparison)
    return [check["met"] for check in checks], render(comparison, checks)


def test_a_stretch_takes_the_part_of_each_step_that_lies_in_it() -> None:
    one = Curve(seed=0, num_moves=0, num_tokens=(10, 40), rewards=(1.0, 0.0))
    short = Curve(seed=1, num_moves=0, num_tokens=(20,), rewards=(0.5,))
    points = resample([one, short])
    assert points.shape == (2, NUM_POINTS)
    assert points[0].tolist() == pytest.approx([1.0] * 10 + [0.0] * 10)
    assert points[1].tolist() == pytest.approx([0.5] * NUM_POINTS)


def test_curves_that_differ_by_noise_only_are_the_same() -> None:
    met, text = outcome()
    assert met == [True, True, True, True, True], text


def test_a_higher_curve_fails_area_and_shape() -> None:
    met, text = outcome(higher_by=0.03)
    assert met == [True, True, False, False, True], text


def test_curves_that_cross_have_the_same_area_and_another_shape() -> None:
    met, text = outcome(crossing=0.05)
    assert met == [True, True, True, False, True], text


def test_a_difference_that_is_too_large_exceeds_the_bound() -> None:
    met, text = outcome(higher_by=0.08)
    assert met == [True, True, False, False, False], text


def test_runs_that_moved_nothing_prove_nothing_nor_do_few_pairs() -> None:
    assert outcome(num_moves=0)[0] == [True, False, True, True, True]
    assert outcome(num_pairs=5, higher_by=0.03)[0] == [False, True, True, True, True], "which are another curve's"


def test_a_curve_is_read_from_a_run_and_drawn(tmp_path: Path) -> None:
    steps = [{"timing_s/step": 1.0, "perf/total_num_tokens": 100.0, "critic/rewards/mean": 0.25} for _ in range(3)]
    rows = [{"held_out/right": 0.1}, *steps]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    summary = {"moves_to_train": 2, "moves_to_rollout": 3, "held_out_after": 0.75}
    (tmp_path / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    found = read_curve(tmp_path, 7)
    assert found == Curve(seed=7, num_moves=5, num_tokens=(100, 200, 300), rewards=(0.25,) * 3, held_out=0.75)
    moving, static = [found, *map(curve, range(3))], [curve(seed, kind=1) for seed in (7, *range(3))]
    draw(moving, static, compare_curves(moving, static), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
