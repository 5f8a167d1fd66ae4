"""A surrogate of the tokens of highest entropy alone (80/20 rule), against its closed form."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from policy_samples import experience_of, random_tokens
from trainer_samples import random_batch

from rlserve.errors import ConfigurationError
from rlserve.trainers import GRPOConfig, TorchTrainerConfig, create_trainer
from rlserve.trainers.algorithms.grpo import GRPO
from rlserve.trainers.backends.pytorch.models import load_policy

LENGTHS = [4, 1, 7, 2, 6]
ENTROPIES = np.random.default_rng(0).permutation(np.arange(20.0)).astype(np.float32)


def test_of_all_tokens_of_the_step_the_share_of_highest_entropy_is_chosen() -> None:
    seen = experience_of([1.0, 0.0, 0.0, 1.0, 0.0], LENGTHS, entropies=ENTROPIES)
    credit = GRPO(GRPOConfig(top_entropy_quantile=0.2)).credit(seen)
    np.testing.assert_array_equal(credit.in_surrogate, ENTROPIES >= 16)
    assert credit.metrics == {"actor/entropy_threshold": pytest.approx(15.2)}
    assert GRPO(GRPOConfig()).credit(seen).in_surrogate is None


def test_tokens_that_the_losses_leave_out_do_not_move_the_threshold() -> None:
    reasons = ("stop", "stop", "length", "stop", "stop")
    seen = experience_of([1.0] * 5, LENGTHS, entropies=ENTROPIES, finish_reasons=reasons)
    credit = GRPO(GRPOConfig(top_entropy_quantile=0.25, mask_truncated_completions=True)).credit(seen)
    assert credit.is_kept is not None
    threshold = np.quantile(ENTROPIES[credit.is_kept], 0.75)
    np.testing.assert_array_equal(credit.in_surrogate, threshold <= ENTROPIES)


def test_the_surrogate_is_zero_elsewhere_and_the_divergence_is_not() -> None:
    tokens = random_tokens(LENGTHS, spread=0.2)
    chosen = torch.from_numpy(ENTROPIES >= 16)
    algorithm = GRPO(GRPOConfig(top_entropy_quantile=0.2, kl_loss_coefficient=0.3))
    found = algorithm.policy_loss(dataclasses.replace(tokens, in_surrogate=chosen))
    whole = algorithm.policy_loss(tokens)
    surrogate = whole.losses["actor/pg_loss"] * chosen
    torch.testing.assert_close(found.losses["actor/pg_loss"], surrogate)
    torch.testing.assert_close(found.per_token, surrogate + 0.3 * whole.losses["actor/kl_loss"])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("deterministic", [False, True])
def test_a_step_looks_at_the_entropies_of_the_policy(model_path: str, temperature: float, deterministic: bool) -> None:
    batch = random_batch(0)
    trainer = create_trainer(
        TorchTrainerConfig(deterministic=deterministic),
        GRPOConfig(top_entropy_quantile=0.2),
        model_path=model_path,
        seed=0,
        temperature=temperature,
    )
    policy = load_policy(model_path, load_weights=True)
    entropies, first = [], 0
    for num_prompt, num_response in zip(batch.prompt_lengths, batch.response_lengths, strict=True):
        end = first + num_prompt + num_response
        input_ids = torch.from_numpy(batch.token_ids[first:end].astype(np.int64))[None]
        with torch.no_grad():
            logits = policy(input_ids=input_ids).logits[0, num_prompt - 1 : -1].double() / temperature
        entropies.append(torch.distributions.Categorical(logits=logits).entropy().numpy())
        first = end
    expected = np.quantile(np.concatenate(entropies)[batch.loss_mask], 0.8)
    assert trainer.step(batch)["actor/entropy_threshold"] == pytest.approx(expected, abs=1e-4)


def test_no_share_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="top_entropy_quantile: must be above 0 and at most 1, got 0"):
        GRPOConfig(top_entropy_quantile=0.0)
