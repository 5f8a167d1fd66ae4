"""``sharding=full`` by NCCL between processes on one GPU, which it takes for machines."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from trainer_ranks import Meetings, Rank, call_all, running_ranks
from trainer_samples import random_batch, save_tiny_model

from rlserve.trainers import PPOConfig, TorchTrainerConfig

pytestmark = pytest.mark.gpu

CONFIG = TorchTrainerConfig(sharding="full", learning_rate=1e-3, critic_learning_rate=1e-3, timeout_s=60.0)
WHOLE = dataclasses.replace(CONFIG, sharding="optimizer", kernels="torch")
ALGORITHM = PPOConfig(num_epochs=2, kl_coefficient=0.05)
BATCHES = [random_batch(seed, num_samples=20) for seed in range(3)]
LOSSES = ("actor/pg_loss", "critic/vf_loss", "actor/entropy", "actor/grad_norm", "critic/grad_norm")


def form(ranks: list[Rank], meetings: Meetings, model_path: str, config: TorchTrainerConfig) -> None:
    call_all(ranks, "forget")
    call_all(ranks, "be_another_machine")
    for index, rank in enumerate(ranks):
        rank.start("create", config, ALGORITHM, model_path, load_weights=index == 0)
    for rank in ranks:
        rank.result()
    meetings.regroup(ranks)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_two_ranks_have_the_losses_of_one_that_holds_everything_and_a_third_joins(tmp_path: Path, dtype: str) -> None:
    model_path, meetings = save_tiny_model(tmp_path), Meetings()
    of_type: dict[str, Any] = {"dtype": dtype, "activation_checkpointing": True, "offload_optimizer": True}
    tolerance: dict[str, Any] = {"rel": 1e-3, "abs": 1e-4} if dtype == "float32" else {"rel": 5e-2, "abs": 1e-2}
    with running_ranks(3) as ranks:
        form(ranks[:1], meetings, model_path, dataclasses.replace(WHOLE, **of_type))
        expected = [ranks[0].call("step", batch) for batch in BATCHES]
        form(ranks[:2], meetings, model_path, dataclasses.replace(CONFIG, **of_type))
        ranks[2].call("be_another_machine")
        ranks[2].call("create", dataclasses.replace(CONFIG, **of_type), ALGORITHM, model_path, load_weights=False)
        for number, (batch, wanted) in enumerate(zip(BATCHES, expected, strict=True)):
            members = ranks if number == 2 else ranks[:2]
            if number == 2:
                (before,) = set(call_all(ranks[:2], "digest"))
                meetings.regroup(ranks)
                assert call_all(ranks, "digest") == [before] * 3
            for found in call_all(members, "step", batch):
                assert {name: found[name] for name in LOSSES} == pytest.approx(
                    {name: wanted[name] for name in LOSSES}, **tolerance
                )
