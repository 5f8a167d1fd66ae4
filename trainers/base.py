"""The contract of a trainer: one object per rank, all ranks call the same methods in the same order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rlserve.distributed.base import RankPlace
from rlserve.trainers.batch import Batch

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Membership(RankPlace):
    """A place in a group of ranks, which is formed anew, with the next generation, whenever a rank joins or leaves.

    The port is a fresh one for every generation: a late rank of the old group must not find the new store.
    """

    generation: int
    """Counts the groups of a run, so that a late member of an old group cannot join a new one."""


class Trainer(ABC):
    """Steps a policy on batches, as one rank of a group that can change at step boundaries."""

    @property
    @abstractmethod
    def num_steps(self) -> int:
        """Steps taken since the initial weights: the version of the weights that this trainer holds."""

    @abstractmethod
    def step(self, batch: Batch) -> dict[str, float]:
        """Train on one batch and return its metrics, the same on every rank.

        Every rank is given the whole batch and computes its share of the logical shards. Samples whose rewards or
        log-probabilities are not all finite are left out, and counted in ``training/num_nonfinite_samples``.

        Raises:
            NonFiniteLossError: on all ranks; the loss or the gradient is not finite, or no sample is; nothing of the
                step stays applied.
            UserError: this rank ran out of memory; the message names what to lower.
            WorkerFailedError: a rank died or did not answer in time. The group is broken: ``rollback``, then
                ``resize`` into a new one (or ``leave``).
        """

    @abstractmethod
    def rollback(self) -> None:
        """Take the last step back: weights, optimizer and step counter as they were before it (or do nothing
        if no step was begun since the last rollback). For survivors of a step that a lost rank broke off."""

    @abstractmethod
    def weights(self) -> dict[str, torch.Tensor]:
        """The policy's weights under their Hugging Face names, detached, on the trainer's device, float32.

        Views: the next step changes them. A tied output head is not listed apart from the embedding.
        """

    @abstractmethod
    def save_pretrained(self, folder: Path) -> None:
        """Write the policy as a Hugging Face model folder (config.json, model.safetensors), without a tokenizer."""

    @abstractmethod
    def resize(self, membership: Membership) -> None:
        """Join the group of ``membership`` and leave any other. Rank 0 must hold the current state; every other
        rank receives weights, optimizer state and step counter from it, in memory.

        Raises:
            DeadlineExceededError: not all members came in time; the message names who is missing.
            WorkerFailedError: a member came and was lost again.
        """

    @abstractmethod
    def leave(self) -> None:
        """Leave the group and free the memory of model and optimizer; ``resize`` brings the rank back."""

    @abstractmethod
    def state(self) -> dict[str, torch.Tensor]:
        """Everything that a checkpoint needs, as named tensors: policy, critic, optimizer, counters, reference.

        Views: the next step changes them.
        """

    @abstractmethod
    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restore what ``state`` returned, bit for bit.

        Raises:
            WeightsRefusedError: names, shapes or types do not fit; nothing was changed.
        """

    @abstractmethod
    def log_probs(self, batch: Batch) -> NDArray[np.float32]:
        """[A] raw log-probabilities of the response tokens under the current policy."""

    @abstractmethod
    def values(self, batch: Batch) -> NDArray[np.float32]:
        """[A] the critic's values at the response tokens: the state before each token is made."""
