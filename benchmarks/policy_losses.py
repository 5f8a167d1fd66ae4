"""Losses and gradients of the recipes beside TRL's own code, on the same tensors.

    PYTHON_WITH_TRL benchmarks/policy_losses.py --json out.json

TRL's trainers compute a loss from padded log-probabilities that their model gives. Here these are random numbers, and
so are those of the old policy, the reference and the sampling distribution; ours gets the same without padding. Needs
an environment with TRL (see ``benchmarks/README.md``) and this repository on ``PYTHONPATH``.

Legend: B samples, R longest response, K tokens of all samples end to end.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from checks import Check, report
from torch import Tensor
from trl import GRPOTrainer, RLOOTrainer

from rlserve.trainers import AlgorithmConfig, GRPOConfig, RLOOConfig, RolloutCorrectionConfig
from rlserve.trainers.algorithms.base import Experience, PolicyTokens
from rlserve.trainers.algorithms.factory import create_algorithm

MAX_DIFFERENCE = 1e-6
LENGTHS = np.array([9, 1, 14, 5, 20, 3, 7, 12], dtype=np.int32)
MAX_COMPLETION_LENGTH = 24
NO_CORRECTION = RolloutCorrectionConfig(rollout_is=None)


@dataclass(frozen=True, kw_only=True)
class Case:
    """The same loss in both."""

    ours: AlgorithmConfig
    trainer: type[Any] = GRPOTrainer
    loss_type: str = "grpo"
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Attributes of TRL's trainer, beside its defaults."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Attributes of its ``args``."""
    on_policy: bool = False
    """The old policy is the new one; then gradients alone are compared, since TRL's value is that of whole answers."""


CASES: Mapping[str, Case] = {
    "grpo": Case(ours=GRPOConfig(rollout_correction=NO_CORRECTION)),
    "grpo, k3 in the loss": Case(
        ours=GRPOConfig(kl_loss_coefficient=0.04, rollout_correction=NO_CORRECTION), settings={"beta": 0.04}
    ),
    "grpo, unbiased k3 in the loss": Case(
        ours=GRPOConfig(kl_loss_coefficient=0.04, use_bias_correction_kl=True, rollout_correction=NO_CORRECTION),
        settings={"beta": 0.04},
        arguments={"use_bias_correction_kl": True},
    ),
    "grpo, tokens of highest entropy": Case(
        ours=GRPOConfig(top_entropy_quantile=0.2, rollout_correction=NO_CORRECTION),
        settings={"top_entropy_quantile": 0.2},
    ),
    "grpo, two-sided clip": Case(
        ours=GRPOConfig(clip_ratio_c=1.5, rollout_correction=NO_CORRECTION), arguments={"delta": 1.5}
    ),
    "grpo, truncated importance weights": Case(
        ours=GRPOConfig(), settings={"use_vllm": True, "vllm_importance_sampling_correction": True}
    ),
    "dr_grpo": Case(
        ours=GRPOConfig(
            loss_agg_mode="seq-mean-token-sum-norm",
            loss_scale_factor=MAX_COMPLETION_LENGTH,
            rollout_correction=NO_CORRECTION,
        ),
        loss_type="dr_grpo",
    ),
    "dapo": Case(
        ours=GRPOConfig(loss_agg_mode="token-mean", clip_ratio_high=0.28, rollout_correction=NO_CORRECTION),
        loss_type="dapo",
        settings={"epsilon_high": 0.28},
    ),
    "bnpo": Case(ours=GRPOConfig(loss_agg_mode="token-mean", rollout_correction=NO_CORRECTION), loss_type="bnpo"),
    "gspo": Case(
        ours=GRPOConfig(loss_mode="gspo", clip_ratio_low=0.03, clip_ratio_high=0.04, rollout_correction=NO_CORRECTION),
        settings={"importance_sampling_level": "sequence", "epsilon_low": 0.03, "epsilon_high": 0.04},
    ),
    "cispo": Case(
        ours=GRPOConfig(
            loss_mode="cispo",
            loss_agg_mode="token-mean",
            clip_ratio_low=1.0,
            clip_ratio_high=0.2,
            rollout_correction=NO_CORRECTION,
        ),
        loss_type="cispo",
        settings={"epsilon_high": 1.2},
    ),
    "sapo": Case(ours=GRPOConfig(loss_mode="sapo", rollout_correction=NO_CORRECTION), loss_type="sapo"),
    "rloo": Case(ours=RLOOConfig(rollout_correction=NO_CORRECTION), trainer=RLOOTrainer, on_policy=True),
}


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Random log-probabilities [K] and advantages [B], all float64."""

    new: Tensor
    old: Tensor
    behaviour: Tensor
    reference: Tensor
    advantages: Tensor
    entropies: Tensor
    """[K]"""


def draw(*, on_policy: bool) -> Numbers:
    generator = torch.Generator().manual_seed(0)

    def normal(num: int) -> Tensor:
        return torch.randn(num, generator=generator, dtype=torch.float64)

    num_tokens = int(LENGTHS.sum())
    new = -normal(num_tokens).abs() - 0.1
    old, behaviour, reference = (new + 0.3 * normal(num_tokens) for _ in range(3))
    return Numbers(
        new=new,
        old=new if on_policy else old,
        behaviour=behaviour,
        reference=reference,
        advantages=normal(len(LENGTHS)),
        entropies=normal(num_tokens).abs().float().double(),
    )


def our_loss(case: Case, numbers: Numbers) -> tuple[float, Tensor]:
    """The loss and its gradient [K]."""
    algorithm = create_algorithm(case.ours)
    log_probs = numbers.new.clone().requires_grad_()
    lengths = torch.from_numpy(LENGTHS)
    tokens = PolicyTokens(
        log_probs=log_probs,
        old_log_probs=numbers.old,
        behaviour_log_probs=numbers.behaviour,
        reference_log_probs=numbers.reference,
        advantages=numbers.advantages.repeat_interleave(lengths),
        entropies=None,
        samples=torch.arange(len(LENGTHS)).repeat_interleave(lengths),
        is_selected=None,
        in_surrogate=in_surrogate(case, numbers),
    )
    weights = algorithm.token_weights(LENGTHS, np.ones(len(log_probs), dtype=bool))
    per_token = algorithm.policy_loss(tokens).per_token * torch.from_numpy(weights.per_token)
    loss = per_token.sum() / weights.normaliser
    loss.backward()
    assert log_probs.grad is not None
    return loss.item(), log_probs.grad


def in_surrogate(case: Case, numbers: Numbers) -> Tensor | None:
    """As a step chooses tokens by their entropies."""
    found = create_algorithm(case.ours).credit(
        Experience(
            rewards=numbers.advantages.float().numpy(),
            reward_components={},
            lengths=LENGTHS,
            group_index=np.zeros(len(LENGTHS), dtype=np.int32),
            finish_reasons=("stop",) * len(LENGTHS),
            behaviour_log_probs=numbers.behaviour.float().numpy(),
            log_probs=numbers.old.float().numpy(),
            entropies=numbers.entropies.float().numpy(),
            reference_log_probs=None,
            values=None,
            final_values=None,
        )
    )
    return None if found.in_surrogate is None else torch.from_numpy(found.in_surrogate)


def trl_loss(case: Case, numbers: Numbers) -> tuple[float, Tensor]:
    """The same from TRL, which is given a model that says what it is told."""
    lengths = torch.from_numpy(LENGTHS)
    mask_BR = torch.arange(int(LENGTHS.max()))[None, :] < lengths[:, None]

    def padded(flat_K: Tensor) -> Tensor:
        return torch.zeros(mask_BR.shape, dtype=torch.float64).masked_scatter(mask_BR, flat_K)

    log_probs_BR = padded(numbers.new).requires_grad_()
    ids_BR = torch.zeros(mask_BR.shape, dtype=torch.int64)
    old_BR, behaviour_BR = padded(numbers.old), padded(numbers.behaviour)
    inputs = {
        "prompt_ids": ids_BR[:, :1],
        "prompt_mask": torch.ones_like(ids_BR[:, :1]),
        "completion_ids": ids_BR,
        "completion_mask": mask_BR.long(),
        "advantages": numbers.advantages,
        "old_per_token_logps": old_BR,
        "old_logps": (old_BR * mask_BR).sum(dim=1),
        "ref_per_token_logps": padded(numbers.reference),
        "importance_sampling_ratio": (old_BR - behaviour_BR).exp().clamp(max=2.0),
        "num_items_in_batch": mask_BR.sum(),
    }
    loss = case.trainer._compute_loss(trl_trainer(case, log_probs_BR, padded(numbers.entropies)), None, inputs)
    loss.backward()
    assert log_probs_BR.grad is not None
    return loss.item(), log_probs_BR.grad[mask_BR]


def trl_trainer(case: Case, log_probs_BR: Tensor, entropies_BR: Tensor) -> SimpleNamespace:
    """What TRL's loss looks at of its trainer, with TRL's defaults."""
    arguments = {
        "delta": None,
        "use_bias_correction_kl": False,
        "sapo_temperature_pos": 1.0,
        "sapo_temperature_neg": 1.05,
        "steps_per_generation": 1,
        **case.arguments,
    }
    attributes = {
        "args": SimpleNamespace(**arguments),
        "accelerator": SimpleNamespace(
            num_processes=1,
            sync_gradients=True,
            gather=lambda tensor: tensor,
            pad_across_processes=lambda tensor, **_: tensor,
            reduce=lambda tensor, reduction: tensor,
        ),
        "model": SimpleNamespace(training=True),
        "loss_type": case.loss_type,
        "beta": 0.0,
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "importance_sampling_level": "token",
        "off_policy_mask_threshold": None,
        "top_entropy_quantile": 1.0,
        "use_vllm": False,
        "max_completion_length": MAX_COMPLETION_LENGTH,
        "current_gradient_accumulation_steps": 1,
        "aux_loss_enabled": False,
        "_entropy_bonus_enabled": False,
        "_metrics": {"train": defaultdict(list)},
        "_get_per_token_logps_and_entropies": lambda *_, **__: (log_probs_BR, entropies_BR, None),
    }
    trainer = SimpleNamespace(**{**attributes, **case.settings})
    trainer.get_high_entropy_mask = lambda *arguments: GRPOTrainer.get_high_entropy_mask(trainer, *arguments)
    return trainer


def compare(name: str, case: Case) -> list[Check]:
    numbers = draw(on_policy=case.on_policy)
    (loss, gradient), (trl, trl_gradient) = our_loss(case, numbers), trl_loss(case, numbers)
    differences = {"gradient": float((gradient - trl_gradient).abs().max())}
    if not case.on_policy:
        differences["loss"] = abs(loss - trl)
    return [
        Check(name=f"{name}: {what} beside TRL's", value=value, bar=MAX_DIFFERENCE, at_least=False)
        for what, value in differences.items()
    ]


def all_checks() -> Iterator[Check]:
    """Of all cases."""
    for name, case in CASES.items():
        yield from compare(name, case)


if __name__ == "__main__":
    raise SystemExit(report(__doc__, all_checks))
