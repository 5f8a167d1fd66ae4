"""Which trainer a configuration names."""

from __future__ import annotations

from rlserve.trainers.base import Membership, Trainer
from rlserve.trainers.config import AlgorithmConfig, TrainerConfig
from rlserve.trainers.ppo.trainer import PPOTrainer

_TRAINERS = {("torch", "ppo"): PPOTrainer}
"""By (backend, algorithm)."""


def create_trainer(
    config: TrainerConfig,
    algorithm: AlgorithmConfig,
    *,
    model_path: str,
    seed: int,
    temperature: float = 1.0,
    membership: Membership | None = None,
    load_weights: bool = True,
) -> Trainer:
    """Build one rank of a trainer, on the GPU if this process sees one.

    Args:
        model_path: Hugging Face folder or hub name of the initial policy.
        seed: decides the critic's head and the order of mini-batches; the same on every rank.
        temperature: that the samples are drawn at; the policy that is trained is softmax(logits / temperature).
        membership: group to join at once; None makes a group of one.
        load_weights: False builds a rank without weights, which must join a group (not as rank 0) or be given
            a saved state before its first step.

    Raises:
        ModelError: ``model_path`` is no model, or one that is not supported.
        DeadlineExceededError: not all members of the group came in time.
    """
    trainer = _TRAINERS[config.backend, algorithm.name](
        config, algorithm, model_path=model_path, seed=seed, temperature=temperature, load_weights=load_weights
    )
    if membership is not None:
        trainer.resize(membership)
    return trainer
