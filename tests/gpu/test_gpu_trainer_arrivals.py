"""Ranks that join while the others step on, and one that is lost, by NCCL between processes on one GPU, which it takes
for machines."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from trainer_ranks import Meetings, call_all, create_all, digest_alone, running_ranks
from trainer_samples import random_batch, save_tiny_model

from rlserve.errors import WorkerFailedError
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


def test_the_survivor_of_a_killed_rank_hears_of_it_and_goes_on_alone(tmp_path: Path) -> None:
    model_path, meetings = save_tiny_model(tmp_path), Meetings()
    with running_ranks(2) as ranks:
        call_all(ranks, "be_another_machine")
        expected = digest_alone(ranks[0], CONFIG, ALGORITHM, model_path, BATCHES[:2])
        create_all(ranks, CONFIG, ALGORITHM, model_path)
        meetings.regroup(ranks)
        call_all(ranks, "step", BATCHES[0])
        survivor, victim = ranks
        victim.call("signal_self_in", "all_to_all", signal.SIGKILL)
        for rank in ranks:
            rank.start("step", BATCHES[1])
        with pytest.raises(WorkerFailedError, match="no answer from rank 1 "):
            survivor.result()
        meetings.regroup([survivor])
        survivor.call("step", BATCHES[1])
        assert survivor.call("digest") == expected
