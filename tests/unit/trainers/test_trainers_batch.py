"""The batch, and tokens in a response that the policy did not make."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from trainer_samples import random_batch, save_tiny_model

from rlserve.trainers import AlgorithmConfig, Batch, GRPOConfig, PPOConfig, TorchTrainerConfig, create_trainer

ALGORITHMS = [
    PPOConfig(kl_coefficient=0.1, entropy_coefficient=0.01, num_mini_batches=2, gae_lambda=0.8, gamma=0.9),
    GRPOConfig(kl_loss_coefficient=0.1, num_epochs=2),
]


def starts_of(lengths: np.ndarray) -> np.ndarray:
    return np.cumsum(lengths) - lengths


def masked_by(batch: Batch, first: int, last: int) -> Batch:
    """The first and last tokens of each response of more are left to an environment, whose numbers are nonsense."""
    mask = batch.loss_mask.copy()
    for start, length in zip(starts_of(batch.response_lengths), batch.response_lengths, strict=True):
        if length > first + last:
            mask[start : start + first] = False
            mask[start + length - last : start + length] = False
    nonsense = np.where(mask, batch.log_probs, np.nan).astype(np.float32)
    versions = np.where(mask, batch.weight_versions, 99).astype(np.int32)
    return dataclasses.replace(
        batch, loss_mask=mask, log_probs=nonsense, behaviour_log_probs=nonsense, weight_versions=versions
    )


def moved_to_prompt(batch: Batch) -> Batch:
    """A batch whose masked tokens stand first in their responses: they might as well end the prompt."""
    kept = batch.loss_mask
    return dataclasses.replace(
        batch,
        prompt_lengths=batch.prompt_lengths + batch.response_lengths - batch.trained_lengths,
        response_lengths=batch.trained_lengths,
        loss_mask=kept[kept],
        log_probs=batch.log_probs[kept],
        behaviour_log_probs=batch.behaviour_log_probs[kept],
        weight_versions=batch.weight_versions[kept],
    )


def cut_off(batch: Batch) -> Batch:
    """A batch whose masked tokens stand last in their responses: no other token sees them."""
    kept = np.ones(len(batch.token_ids), dtype=bool)
    lengths = batch.prompt_lengths + batch.response_lengths
    removed = batch.response_lengths - batch.trained_lengths
    for end, num_removed in zip(np.cumsum(lengths), removed, strict=True):
        kept[end - num_removed : end] = False
    return dataclasses.replace(
        moved_to_prompt(batch), prompt_lengths=batch.prompt_lengths, token_ids=batch.token_ids[kept]
    )


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=["ppo", "grpo"])
@pytest.mark.parametrize(("first", "last"), [(2, 0), (0, 2)], ids=["as-a-prompt", "as-if-not-there"])
def test_tokens_of_an_environment_are_read_and_not_trained_on(
    tmp_path: Path, algorithm: AlgorithmConfig, first: int, last: int
) -> None:
    model_path = save_tiny_model(tmp_path, initializer_range=0.05)
    results = []
    masked = masked_by(random_batch(0), first, last)
    assert 0 < (~masked.loss_mask).sum() < masked.num_response_tokens
    for batch in (masked, cut_off(masked) if last else moved_to_prompt(masked)):
        trainer = create_trainer(
            TorchTrainerConfig(num_logical_shards=1, learning_rate=1e-3), algorithm, model_path=model_path, seed=0
        )
        metrics = trainer.step(batch)
        # Lengths differ, and with them the padding.
        results.append({name: metrics[name] for name in metrics if "_length" not in name and "padding" not in name})
    assert results[0] == pytest.approx(results[1], rel=2e-3, abs=1e-5)


def test_numbers_of_untrained_tokens_do_not_count_as_not_finite() -> None:
    masked = masked_by(random_batch(0), 1, 0)
    assert np.isnan(masked.log_probs).any()
    assert masked.is_finite().all()
    assert not dataclasses.replace(masked, loss_mask=np.ones_like(masked.loss_mask)).is_finite().all()


def test_selected_samples_keep_all_that_is_theirs() -> None:
    batch = dataclasses.replace(
        masked_by(random_batch(0), 1, 1),
        reward_components={"format": np.arange(12, dtype=np.float32)},
        finish_reasons=("stop", "length", "stop") * 4,
    )
    chosen = batch.select(np.array([1, 4, 11]))
    assert chosen.sample_ids == ("0-1", "0-4", "0-11")
    assert chosen.group_ids == ("0:0", "0:1", "0:2")
    assert chosen.group_index.tolist() == [0, 1, 2]
    assert chosen.finish_reasons == ("length", "length", "stop")
    assert chosen.is_truncated.tolist() == [True, True, False]
    assert chosen.reward_components["format"].tolist() == [1.0, 4.0, 11.0]
    assert chosen.trained_lengths.tolist() == batch.trained_lengths[[1, 4, 11]].tolist()
    tokens = batch.tokens_of(np.array([1, 4, 11]))
    assert chosen.log_probs[chosen.loss_mask].tolist() == batch.log_probs[tokens].tolist()


def test_places_of_trained_tokens_follow_the_order_asked_for() -> None:
    batch = random_batch(0)
    starts = starts_of(batch.response_lengths)
    expected = [
        start + token
        for start, length in ((starts[7], batch.response_lengths[7]), (starts[2], batch.response_lengths[2]))
        for token in range(length)
    ]
    assert batch.tokens_of(np.array([7, 2])).tolist() == expected
