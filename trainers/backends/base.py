"""The contract of a backend: one rank's networks and their optimizer, in a group of ranks. Knows no algorithm.

What is minimised comes to it as functions of what the networks say about some tokens. All ranks call the same methods
in the same order, and every rank returns the same bits. Those of ``pytorch`` do not depend on the number of ranks,
those of ``fully_sharded`` and ``deepspeed`` do.

Legend: B samples and A response tokens of a batch, a tokens of a mini-batch or of a part of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlserve.trainers.base import Membership, StateCopy, Traffic
from rlserve.trainers.batch import Batch

FloatArray = NDArray[np.float32]

POLICY, CRITIC = "policy", "critic"
"""Networks that are trained, as keys of norms and learning rates."""
CRITIC_HEAD = "critic_head"
"""The critic's value head, as a key of learning rates, where it has one of its own."""


@dataclass(frozen=True, kw_only=True)
class Networks:
    """Which networks there are beside the policy, and what else is state."""

    critic: bool
    reference: bool
    """A frozen copy of the initial policy."""
    scores: bool = False
    """The policy has a head of one score in place of the vocabulary. It says values, and no log-probabilities, and its
    loss is that of values. Backend `pytorch` alone has it."""
    carried: Mapping[str, float] = field(default_factory=dict)
    """What ``Backend.carried`` is before the first step."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to say about a batch; only what is named is computed."""

    policy: bool = False
    """Log-probabilities under the policy."""
    entropies: bool = False
    """Of the policy, with its log-probabilities."""
    reference: bool = False
    """Log-probabilities under the reference."""
    values: bool = False
    final_values: bool = False
    """The critic's values of the states after samples that were cut."""
    for_only_update: bool = False
    """The next gradient is of the whole batch and of the networks as they are, so what they computed may be kept."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """What the networks say about a batch; each [A] but the last, None where it was not wanted."""

    log_probs: FloatArray | None = None
    """Under softmax(logits / temperature), which is the policy that is trained."""
    raw_log_probs: FloatArray | None = None
    """Under the model itself, at temperature 1."""
    entropies: FloatArray | None = None
    """Of the policy that is trained, at each token, in nats."""
    reference_log_probs: FloatArray | None = None
    """Under the reference, at the temperature."""
    values: FloatArray | None = None
    """Of the state before each token is made."""
    final_values: FloatArray | None = None
    """[B] of the state after a sample that was cut; 0 for all others."""


@dataclass(frozen=True, kw_only=True)
class PolicyOutputs:
    """What the policy says about some response tokens; each [a] float32."""

    log_probs: Tensor
    """Under the trained policy, softmax(logits / temperature)."""
    raw_log_probs: Tensor
    """Under the model itself, softmax(logits), without gradient."""
    entropies: Tensor | None
    """Of the trained policy at each token, in nats; None where they were not asked for."""


@dataclass(frozen=True, kw_only=True)
class Losses:
    """What some tokens add to the loss of a mini-batch, each a scalar. ``tokens`` [a] says where they stand in the
    batch's per-token arrays; which of them come together is the backend's choice, within what ``of_whole_samples``
    leaves it."""

    policy: Callable[[Tensor, PolicyOutputs], Tensor]
    value: Callable[[Tensor, Tensor], Tensor] | None
    """Of the tokens and the critic's values [a]; None without a critic."""
    with_entropies: bool
    """Whether the policy's loss looks at the entropies, which cost a pass over the whole distribution."""
    of_whole_samples: bool
    """Whether all trained tokens of a sample come to the policy's loss together, one after the other."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Gradient:
    """A gradient that is computed and not applied yet, and what the forward passes for it gave."""

    tokens: NDArray[np.int64]
    """[a] the tokens of the mini-batch, as places in the batch's per-token arrays, in the order of the rows below."""
    policy: PolicyOutputs | None
    """Of all tokens of the mini-batch, without gradient; None of a model that scores."""
    values: Tensor | None
    """[a]"""
    norms: Mapping[str, float]
    """Euclidean norm by network, before clipping; networks that share a trunk have one."""
    padding_share: float
    """Of the tokens that went through the networks, those that no sample has."""
    learning_rates: Mapping[str, float]
    """By network, and of the critic's head where it has its own, of the update that would apply it."""


class Backend(ABC):
    """One rank."""

    device: torch.device
    """Where the losses are computed."""
    max_tokens_per_pass: int
    """Tokens that go through a network at once, at most; one sample always fits."""

    @property
    @abstractmethod
    def rank(self) -> int:
        """This rank's number in its group, which changes with the group."""

    @property
    @abstractmethod
    def waits_for_others(self) -> bool:
        """Whether this rank is in the middle of an operation of its group. May be read by any thread."""

    @property
    @abstractmethod
    def num_steps(self) -> int:
        """Steps completed since the initial weights."""

    @abstractmethod
    def score(self, batch: Batch, wanted: Wanted, *, alone: bool = False) -> Scores:
        """Forward passes over the whole batch, without gradients; ``alone`` without the other ranks."""

    @property
    @abstractmethod
    def last_metrics(self) -> dict[str, float]:
        """As ``Trainer.last_metrics``."""

    @property
    @abstractmethod
    def carried(self) -> Mapping[str, float]:
        """Numbers that the algorithm carries from step to step, by name, as the last step left them: part of the state,
        the same on every rank."""

    @abstractmethod
    def begin_step(self) -> None:
        """Make the present state the one that ``take_back`` returns to."""

    @abstractmethod
    def compute_gradient(
        self, batch: Batch, samples: NDArray[np.int64], losses: Losses, *, completes_step: bool
    ) -> Gradient:
        """Forward and backward over a mini-batch, given by the indices of its samples. The gradient itself stays here
        until it is applied: by ``complete_step`` where it ``completes_step``, otherwise by ``update``."""

    @abstractmethod
    def update(self) -> None:
        """Clip the gradient that was computed last and apply it."""

    @abstractmethod
    def complete_step(self, metrics: Mapping[str, float], carried: Mapping[str, float]) -> None:
        """As ``update``, for the last of a step: count the step as taken, and keep its metrics, and what the algorithm
        carries on."""

    @abstractmethod
    def take_back(self) -> None:
        """Return to where the step began, on all ranks together."""

    @abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """As ``Trainer.weights``."""

    @abstractmethod
    def save_pretrained(self, folder: Path) -> None:
        """As ``Trainer.save_pretrained``."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """As ``Trainer.state``."""

    @abstractmethod
    def copy_state(self) -> StateCopy:
        """As ``Trainer.copy_state``."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """As ``Trainer.load_state``."""

    @abstractmethod
    def load_files(self, folder: Path) -> None:
        """As ``Trainer.load_files``."""

    @abstractmethod
    def meet(self, membership: Membership) -> None:
        """As ``Trainer.meet``."""

    @abstractmethod
    def break_off(self, generation: int) -> None:
        """As ``Trainer.break_off``."""

    @abstractmethod
    def resize(self, membership: Membership) -> Traffic:
        """As ``Trainer.resize``."""

    @abstractmethod
    def sleep(self, *, offload: bool) -> None:
        """As ``Trainer.sleep``."""

    @abstractmethod
    def wake(self) -> None:
        """As ``Trainer.wake``."""

    @abstractmethod
    def prepare(self) -> None:
        """As ``Trainer.prepare``."""

    @abstractmethod
    def leave(self) -> None:
        """As ``Trainer.leave``."""

    @abstractmethod
    def disconnect(self) -> None:
        """Close this rank's end of the group, so that ranks that wait for it fail now and not at their deadline."""
