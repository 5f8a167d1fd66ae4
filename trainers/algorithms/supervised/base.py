"""The contract of a supervised algorithm: one that is told what is right, and can judge a model by it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

from rlserve.trainers.algorithms.base import Algorithm, Experience


class Supervised(Algorithm):
    """Learns from a data set, in one update a step. Rewards and log-probabilities of its batches mean nothing."""

    num_epochs = num_mini_batches = 1

    @abstractmethod
    def judge(self, experience: Experience) -> Mapping[str, float]:
        """How well the model does on some samples: metrics by name, with ``loss`` among them. ``log_probs`` of the
        experience, or ``values`` where it scores, are there."""
