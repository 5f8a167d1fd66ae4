"""What is kept of a batch whose step failed."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
from trainer_samples import random_batch

from rlserve.controller.failed_batch import keep_batch
from rlserve.trainers.batch import Batch, GreedyAnswers


def test_all_of_a_batch_is_kept(tmp_path: Path) -> None:
    plain = random_batch(0)
    num_samples = len(plain.sample_ids)
    batch = replace(
        plain,
        turn_rewards=np.linspace(0, 1, len(plain.loss_mask), dtype=np.float32),
        reward_components={"format": np.arange(num_samples, dtype=np.float32)},
        greedy_answers=GreedyAnswers(
            rewards=np.full(num_samples, 0.5, dtype=np.float32),
            lengths=np.full(num_samples, 3, dtype=np.int32),
            finish_reasons=("stop",) * num_samples,
        ),
    )
    assert keep_batch(tmp_path / "batch.npz", batch) == f"is in {tmp_path / 'batch.npz'}"
    with np.load(tmp_path / "batch.npz") as kept:
        found = {name: kept[name] for name in kept.files}
    assert found.pop("reward/format").tolist() == list(range(num_samples))
    assert found.pop("greedy_rewards").tolist() == [0.5] * num_samples
    assert found.pop("greedy_lengths").tolist() == [3] * num_samples
    assert found.pop("greedy_finish_reasons").tolist() == ["stop"] * num_samples
    assert found.keys() == {field.name for field in fields(Batch)} - {"reward_components", "greedy_answers"}
    assert all(np.array_equal(values, np.array(getattr(batch, name))) for name, values in found.items())


def test_what_a_batch_has_none_of_has_no_array(tmp_path: Path) -> None:
    keep_batch(tmp_path / "batch.npz", random_batch(0))
    with np.load(tmp_path / "batch.npz") as kept:
        assert not [name for name in kept.files if name.startswith(("turn", "greedy", "reward/"))]
