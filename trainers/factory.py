"""A trainer from its configuration: an algorithm and a backend."""

from __future__ import annotations

from typing import Literal

import torch

from rlserve.errors import UserError
from rlserve.trainers.algorithms.config import AlgorithmConfig
from rlserve.trainers.algorithms.factory import create_algorithm
from rlserve.trainers.backends.base import Networks
from rlserve.trainers.backends.config import TrainerConfig
from rlserve.trainers.backends.factory import create_backend
from rlserve.trainers.base import Membership, Trainer
from rlserve.trainers.trainer import ElasticTrainer


def create_trainer(
    config: TrainerConfig,
    algorithm: AlgorithmConfig,
    *,
    model_path: str,
    seed: int,
    temperature: float = 1.0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    membership: Membership | None = None,
    load_weights: bool = True,
) -> Trainer:
    """Build one rank of a trainer.

    Args:
        model_path: Hugging Face folder or hub name of the initial policy.
        seed: decides the critic's head and the order of mini-batches; the same on every rank.
        temperature: that the samples are drawn at; the policy that is trained is softmax(logits / temperature).
        device: where to compute; ``auto`` takes the GPU that this process sees, if it sees one.
        membership: group to join at once; None makes a group of one.
        load_weights: False builds a rank without weights, which must join a group (not as rank 0) or be given
            a saved state before its first step.

    Raises:
        UserError: ``cuda`` was asked for, and torch sees no GPU; or ``deterministic``, which is not for this device or
            model; or learning rates that fall, without a number of steps.
        ModelError: ``model_path`` is no model, or one that is not supported.
        DeadlineExceededError: not all members of the group came in time.
    """
    if config.learning_rate_schedule != "constant" and config.num_schedule_steps is None:
        raise UserError(
            f"learning_rate_schedule={config.learning_rate_schedule} needs num_schedule_steps: a trainer does not know "
            "how many steps it will make"
        )
    algorithm_of_run = create_algorithm(algorithm)
    needs = algorithm_of_run.needs
    backend = create_backend(
        config,
        Networks(
            critic=needs.critic,
            reference=needs.reference,
            scores=needs.scores,
            carried=dict(algorithm_of_run.carried),
        ),
        model_path=model_path,
        seed=seed,
        temperature=temperature,
        device=_resolve_device(device),
        load_weights=load_weights,
    )
    trainer = ElasticTrainer(algorithm_of_run, backend, seed=seed)
    if membership is not None:
        trainer.resize(membership)
    return trainer


def _resolve_device(requested: Literal["auto", "cpu", "cuda"]) -> torch.device:
    has_gpu = torch.cuda.is_available()
    if requested == "cuda" and not has_gpu:
        raise UserError("device=cuda, but torch sees no GPU here; install a CUDA build of torch")
    return torch.device("cuda" if has_gpu and requested != "cpu" else "cpu")
