"""Ranks that join while the others step on, by NCCL between processes on one GPU, which it takes for machines."""

from __future__ import annotations

from pathlib import Path

import pytest
from trainer_ranks import Meetings, call_all, create_all, digest_alone, running_ranks
from trainer_samples import random_batch, save_tiny_model

from rlserve.trainers import PPOConfig, TorchTrainerConfig

pytestmark = pytest.mark.gpu

CONFIG = TorchTrainerConfig(learning_rate=1e-2, critic_learning_rate=1e-2, num_logical_shards=7, timeout_s=30.0)
ALGORITHM = PPOConfig(num_epochs=2, kl_coefficient=0.05)
BATCHES = [random_batch(seed, num_samples=20) for seed in range(3)]


def test_joins_give_the_bits_of_one_rank(tmp_path: Path) -> None:
    model_path, meetings = save_tiny_model(tmp_path), Meetings()
    with running_ranks(3) as ranks:
        call_all(ranks, "be_another_machine")
        expected = digest_alone(ranks[0], CONFIG, ALGORITHM, model_path, BATCHES)
        create_all(ranks, CONFIG, ALGORITHM, model_path)
        for number, batch in enumerate(BATCHES, 1):
            if number > 1:
                meetings.join(ranks[:number])
            call_all(ranks[:number], "step", batch)
        assert call_all(ranks, "digest") == [expected] * 3
