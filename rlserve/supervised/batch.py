"""From tokenised rows to the flat arrays that the trainer steps on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from rlserve.supervised.base import Sample
from rlserve.supervised.tokenised_rows import TokenisedRows
from rlserve.trainers.algorithms.supervised.config import MARGIN
from rlserve.trainers.batch import Batch


def build_batch(rows: TokenisedRows, chosen: Iterable[tuple[str, int]]) -> Batch:
    """The samples of some rows, given by a name and an index each, end to end. A sample is named ``"{row}/{index}"``.

    What stands before the first trained token of a sample is its prompt, the rest up to the last one its response.
    """
    named = [(name, number, sample) for name, row in chosen for number, sample in enumerate(rows.samples(row))]
    bounds = [_trained_bounds(sample) for _, _, sample in named]
    response_lengths = np.array([end - first for first, end in bounds], dtype=np.int32)
    num_response_tokens, num_samples = int(response_lengths.sum()), len(named)
    parts = [(sample, first, end) for (_, _, sample), (first, end) in zip(named, bounds, strict=True)]
    return Batch(
        sample_ids=tuple(f"{name}/{number}" for name, number, _ in named),
        group_ids=tuple(name for name, _, _ in named),
        prompt_lengths=np.array([first for first, _ in bounds], dtype=np.int32),
        response_lengths=response_lengths,
        token_ids=np.concatenate([sample.token_ids[:end] for sample, _, end in parts]),
        loss_mask=np.concatenate([sample.is_trained[first:end] for sample, first, end in parts]),
        log_probs=np.zeros(num_response_tokens, dtype=np.float32),
        behaviour_log_probs=np.zeros(num_response_tokens, dtype=np.float32),
        weight_versions=np.zeros(num_response_tokens, dtype=np.int32),
        rewards=np.zeros(num_samples, dtype=np.float32),
        reward_components=_margins([sample for sample, _, _ in parts]),
        finish_reasons=("stop",) * num_samples,
    )


def _trained_bounds(sample: Sample) -> tuple[int, int]:
    """The first trained token, and the end of the last."""
    places = np.flatnonzero(sample.is_trained)
    return int(places[0]), int(places[-1]) + 1


def _margins(samples: Sequence[Sample]) -> dict[str, NDArray[np.float32]]:
    """[S] of each sample, where the data have any."""
    margins = [sample.margin for sample in samples if sample.margin is not None]
    return {MARGIN: np.array(margins, dtype=np.float32)} if margins else {}
