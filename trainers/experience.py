"""From a batch and what the networks say about it to what an algorithm is shown."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from rlserve.trainers.algorithms.base import Experience
from rlserve.trainers.backends.base import Scores
from rlserve.trainers.batch import Batch


def experience_of(batch: Batch, scores: Scores, carried: Mapping[str, float]) -> Experience:
    """The samples of a batch, with what the step before has left; per-token numbers are those of the trained tokens
    alone."""

    def trained(array_A: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
        return None if array_A is None else array_A[batch.loss_mask]

    return Experience(
        rewards=batch.rewards,
        turn_rewards=trained(batch.turn_rewards),
        reward_components=batch.reward_components,
        lengths=batch.trained_lengths,
        group_index=batch.group_index,
        finish_reasons=batch.finish_reasons,
        greedy_answers=batch.greedy_answers,
        behaviour_log_probs=batch.behaviour_log_probs[batch.loss_mask],
        carried=carried,
        log_probs=trained(scores.log_probs),
        entropies=trained(scores.entropies),
        reference_log_probs=trained(scores.reference_log_probs),
        values=trained(scores.values),
        final_values=scores.final_values,
    )
