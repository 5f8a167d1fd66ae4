"""PPO's advantages, returns, loss and gradient beside TRL's own code, on the same tensors.

    PYTHON_WITH_TRL_1_12 benchmarks/ppo_losses.py --json out.json

TRL has them in the middle of ``PPOTrainer.train``; so the lines are taken from its source as it is installed, and
executed. Needs an environment with a TRL that has the trainer (see ``benchmarks/README.md``) and this repository on
``PYTHONPATH``.

TRL gives the reward to the token behind an answer's last where there is one, and its critic learns there too; so all
answers fill the whole length where rewards are compared. It whitens by the sample's deviation (n - 1), rlserve by the
population's: ours are multiplied by the quotient of the two.

Legend: B samples, R longest response, K tokens of all samples end to end.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from checks import Check, report
from torch import Tensor
from trl.experimental.ppo import ppo_trainer

from rlserve.trainers import PPOConfig, RolloutCorrectionConfig
from rlserve.trainers.algorithms.base import Experience, PolicyTokens, ValueTokens
from rlserve.trainers.algorithms.ppo import PPO

MAX_DIFFERENCE = 1e-6
REWARDS = ("# 4. compute rewards", "empty_cache()")
"""First line of TRL's part, and the first line after it."""
LOSSES = ("vpredclipped = torch.clamp(", "accelerator.backward(loss)")

_generator = torch.Generator().manual_seed(0)


def normal(*shape: int) -> Tensor:
    """Float64."""
    return torch.randn(*shape, generator=_generator, dtype=torch.float64)


def run_trl(part: tuple[str, str], **given: Any) -> dict[str, Any]:
    """Execute a part of TRL's training loop with these variables; returns all that there are then."""
    lines = inspect.getsource(ppo_trainer.PPOTrainer.train).splitlines()
    first = next(number for number, line in enumerate(lines) if line.strip().startswith(part[0]))
    end = next(number for number, line in enumerate(lines) if number > first and line.strip().startswith(part[1]))
    found = {**vars(ppo_trainer), **given}
    exec(textwrap.dedent("\n".join(lines[first:end])), found)
    return found


def check(name: str, ours: Tensor, theirs: Tensor) -> Check:
    value = float((ours - theirs).abs().max())
    return Check(name=f"{name} beside TRL's", value=value, bar=MAX_DIFFERENCE, at_least=False)


def credit(*, kl_estimator: Any, whitens_rewards: bool) -> Iterator[Check]:
    """Advantages and returns of answers that fill the whole length."""
    num_samples, length = 5, 11
    num_tokens = num_samples * length
    scores = normal(num_samples).float()
    policy, values = (normal(num_samples, length).float() for _ in range(2))
    reference = policy + 0.5 * normal(num_samples, length).float()  # near: at 10, k3 is bounded here and not in TRL
    to_sample_deviation = ((num_tokens - 1) / num_tokens) ** 0.5
    theirs = run_trl(
        REWARDS,
        args=SimpleNamespace(
            kl_estimator=kl_estimator, kl_coef=0.05, whiten_rewards=whitens_rewards, gamma=0.99, lam=0.95
        ),
        logprobs=policy.double(),
        ref_logprobs=reference.double(),
        values=values.double(),
        scores=scores.double(),
        responses=torch.zeros(num_samples, length),
        sequence_lengths=torch.full((num_samples,), length - 1),
        sequence_lengths_p1=torch.full((num_samples,), length),
        padding_mask=torch.zeros(num_samples, length, dtype=torch.bool),
        padding_mask_p1=torch.zeros(num_samples, length, dtype=torch.bool),
    )
    config = PPOConfig(
        gamma=0.99,
        gae_lambda=0.95,
        kl_coefficient=0.05,
        kl_penalty=kl_estimator,
        whiten_rewards=whitens_rewards,
        bound_whitening=False,
    )
    found = PPO(config).credit(
        Experience(
            rewards=scores.numpy(),
            reward_components={},
            lengths=np.full(num_samples, length, dtype=np.int32),
            group_index=np.arange(num_samples, dtype=np.int32),
            finish_reasons=("stop",) * num_samples,
            behaviour_log_probs=policy.flatten().numpy(),
            log_probs=policy.flatten().numpy(),
            reference_log_probs=reference.flatten().numpy(),
            values=values.flatten().numpy(),
            final_values=None,
        )
    )
    name = f"{kl_estimator} in the reward"
    if whitens_rewards:
        # Rewards are whitened by the other deviation too, which no factor of what follows from them undoes.
        rewards = torch.from_numpy(found.rewards)
        their_rewards = theirs["rewards"].flatten()
        mean = their_rewards.mean()
        yield check("whitened rewards", (rewards - mean) * to_sample_deviation, their_rewards - mean)
        return
    assert found.returns is not None
    yield check(f"{name}: returns", torch.from_numpy(found.returns), theirs["returns"].flatten())
    advantages = torch.from_numpy(found.policy_advantages) * to_sample_deviation
    yield check(f"{name}: advantages", advantages, theirs["advantages"].flatten())


def losses() -> Iterator[Check]:
    """Of policy and critic together, of answers of different lengths."""
    lengths = torch.tensor([9, 1, 14, 5, 20, 3, 7, 12])
    num_tokens, num_samples = int(lengths.sum()), len(lengths)
    mask_BR = torch.arange(int(lengths.max()))[None, :] < lengths[:, None]

    def padded(flat_K: Tensor) -> Tensor:
        return torch.zeros(mask_BR.shape, dtype=torch.float64).masked_scatter(mask_BR, flat_K)

    old, old_values, advantages, returns = (normal(num_tokens) for _ in range(4))
    new, values = old + 0.3 * normal(num_tokens), old_values + 0.4 * normal(num_tokens)
    ours = [each.clone().requires_grad_() for each in (new, values)]
    theirs = [padded(each).requires_grad_() for each in (new, values)]
    found = run_trl(
        LOSSES,
        args=SimpleNamespace(cliprange=0.2, cliprange_value=0.2, vf_coef=0.1),
        new_logprobs=theirs[0],
        vpred=theirs[1],
        mb_logprobs=padded(old),
        mb_values=padded(old_values),
        mb_advantage=padded(advantages),
        mb_return=padded(returns),
        padding_mask=~mask_BR,
        padding_mask_p1=~mask_BR,
        micro_batch_inds=torch.arange(num_samples),
    )
    algorithm = PPO(PPOConfig(value_coefficient=0.1, rollout_correction=RolloutCorrectionConfig(rollout_is=None)))
    policy_loss = algorithm.policy_loss(
        PolicyTokens(
            log_probs=ours[0],
            old_log_probs=old,
            behaviour_log_probs=old,
            reference_log_probs=None,
            advantages=advantages,
            entropies=None,
            samples=torch.arange(num_samples).repeat_interleave(lengths),
            is_selected=None,
        )
    )
    value_loss = algorithm.value_loss(ValueTokens(values=ours[1], old_values=old_values, returns=returns))
    weights = algorithm.token_weights(lengths.numpy().astype(np.int32), np.ones(num_tokens, dtype=bool))

    def total(per_token: Tensor) -> Tensor:
        return (per_token * torch.from_numpy(weights.per_token)).sum() / weights.normaliser

    loss = total(policy_loss.per_token) + total(value_loss.per_token)
    loss.backward()
    found["loss"].backward()
    yield check("policy's loss", total(policy_loss.per_token).detach(), found["pg_loss"].detach())
    yield check("critic's loss", total(value_loss.losses["critic/vf_loss"]).detach(), found["vf_loss"].detach())
    yield check("whole loss", loss.detach(), found["loss"].detach())
    for name, mine, other in zip(("log-probabilities", "values"), ours, theirs, strict=True):
        assert mine.grad is not None
        assert other.grad is not None
        yield check(f"gradient of {name}", mine.grad, other.grad[mask_BR])


def all_checks() -> Iterator[Check]:
    """Of what is credited, and of what is minimised."""
    yield from credit(kl_estimator="k1", whitens_rewards=False)
    yield from credit(kl_estimator="k3", whitens_rewards=False)
    yield from credit(kl_estimator="k1", whitens_rewards=True)
    yield from losses()


if __name__ == "__main__":
    raise SystemExit(report(__doc__, all_checks))
