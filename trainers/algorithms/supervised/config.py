"""Configuration of supervised algorithms. Imports neither torch nor NumPy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from rlserve.errors import check_fields
from rlserve.trainers.algorithms.needs import Needs

MARGIN = "margin"
"""Component of the reward of a chosen sample: by how much it should be better, at least."""


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig:
    """What all algorithms have that learn from a data set (`data`); `rollout`, `reward` and what else belongs to
    generating has no part in such a run."""

    batch_size: int = 64
    """Rows of the data in a training step, which makes one update."""
    num_train_epochs: int | None = None
    """Passes over the data, which decide `num_steps`. None: `num_steps` is as it is set."""

    def __post_init__(self) -> None:
        check_fields(self, self._ranges())

    @property
    def needs(self) -> Needs:
        """No rollouts."""
        return Needs(rollouts=False)

    @property
    def num_epochs(self) -> int:
        """Passes over the samples of a step."""
        return 1

    @property
    def num_mini_batches(self) -> int:
        """Updates in a pass."""
        return 1

    def _ranges(self) -> dict[str, bool | str]:
        return {
            "batch_size": self.batch_size >= 1 or "must be at least 1",
            "num_train_epochs": self.num_train_epochs is None
            or self.num_train_epochs >= 1
            or "must be null or at least 1",
        }


@dataclass(frozen=True, kw_only=True)
class SFTConfig(SupervisedConfig):
    """Supervised fine-tuning: the mean negative log-likelihood of the tokens of completions."""

    name: Literal["sft"] = "sft"
    """The algorithm."""
    completion_only_loss: bool = True
    """Learn completions, or what the assistant says in conversations, alone; False learns prompts too (TRL's name)."""


@dataclass(frozen=True, kw_only=True)
class RewardModelConfig(SupervisedConfig):
    """A reward model by preferences (Bradley and Terry 1952, as in Ouyang et al. 2022, arXiv 2203.02155): minus the
    log-probability, in the mean over pairs, that the chosen answer is preferred."""

    name: Literal["reward_model"] = "reward_model"
    """The algorithm."""
    center_rewards_coefficient: float = 0.0
    """Weight of the mean squared sum of the two scores of a pair, which keeps scores about 0 (Eisenstein et al. 2023,
    arXiv 2312.09244; TRL's name)."""

    @property
    def needs(self) -> Needs:
        """A model that scores."""
        return replace(super().needs, scores=True)

    def _ranges(self) -> dict[str, bool | str]:
        return super()._ranges() | {
            "center_rewards_coefficient": self.center_rewards_coefficient >= 0 or "must be at least 0"
        }
