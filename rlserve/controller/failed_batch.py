"""The file that is kept of a batch whose step failed, for whoever looks into it: ``numpy.load`` reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rlserve.trainers.batch import Batch


def keep_batch(path: Path, batch: Batch) -> str:
    """Keep a batch that broke a step; says where it is, or why it is nowhere."""
    try:
        _save_batch(path, batch)
    except OSError as error:  # the run ends with the loss all the same
        return f"cannot be written to {path}: {error.strerror}"
    return f"is in {path}"


def _save_batch(path: Path, batch: Batch) -> None:
    """What the batch has none of has no array: ``turn_rewards``, ``greedy_…``, and one ``reward/NAME`` a component."""
    further: dict[str, Any] = {f"reward/{name}": values for name, values in batch.reward_components.items()}
    if batch.turn_rewards is not None:
        further["turn_rewards"] = batch.turn_rewards
    if (greedy := batch.greedy_answers) is not None:
        further |= {"greedy_rewards": greedy.rewards, "greedy_lengths": greedy.lengths}
        further["greedy_finish_reasons"] = np.array(greedy.finish_reasons)
    np.savez(
        path,
        sample_ids=np.array(batch.sample_ids),
        group_ids=np.array(batch.group_ids),
        prompt_lengths=batch.prompt_lengths,
        response_lengths=batch.response_lengths,
        token_ids=batch.token_ids,
        loss_mask=batch.loss_mask,
        log_probs=batch.log_probs,
        behaviour_log_probs=batch.behaviour_log_probs,
        weight_versions=batch.weight_versions,
        rewards=batch.rewards,
        finish_reasons=np.array(batch.finish_reasons),
        **further,
    )
