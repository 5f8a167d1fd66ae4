"""Ranks that join while the others step on, by NCCL between processes on one GPU, which it takes for machines."""

from __future__ import annotations

from pathlib import Path

import pytest
from trainer_ranks import Meetings, Rank, call_all, running_ranks
from trainer_samples import random_batch, save_tiny_model

from rlserve.trainers import PPOConfig, TorchTrainerConfig

pytestmark = pytest.mark.gpu

CONFIG = TorchTrainerConfig(learning_rate=1e-2, critic_learning_rate=1e-2, num_logical_shards=7, timeout_s=30.0)
ALGORITHM = PPOConfig(num_epochs=2, kl_coefficient=0.05)
BATCHES = [random_batch(seed, num_samples=20) for seed in range(3)]


def create(ranks: list[Rank], model_path: str) -> None:
    for index, rank in enumerate(ranks):
        rank.call("be_another_machine")
        rank.start("create", CONFIG, ALGORITHM, model_path, load_weights=index == 0)
    for rank in ranks:
        rank.result()


def join(meetings: Meetings, ranks: list[Rank]) -> None:
    meetings.meet(ranks)
    meetings.regroup_as_met(ranks)


def test_joins_give_the_bits_of_one_rank(tmp_path: Path) -> None:
    model_path, meetings = save_tiny_model(tmp_path), Meetings()
    with running_ranks(3) as ranks:
        create(ranks[:1], model_path)
        for batch in BATCHES:
            ranks[0].call("step", batch)
        expected = ranks[0].call("digest")
        create(ranks, model_path)
        for number, batch in enumerate(BATCHES, 1):
            if number > 1:
                join(meetings, ranks[:number])
            call_all(ranks[:number], "step", batch)
        assert call_all(ranks, "digest") == [expected] * 3
