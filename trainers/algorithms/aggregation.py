"""How the losses of single tokens make the loss of a mini-batch, under verl's names (``loss_agg_mode``).

Legend: S samples of the mini-batch, a their tokens end to end.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rlserve.trainers.algorithms.base import TokenWeights
from rlserve.trainers.algorithms.config import LossAggregation


def aggregate(
    mode: LossAggregation, lengths: NDArray[np.int32], is_kept: NDArray[np.bool_], loss_scale_factor: float | None
) -> TokenWeights:
    """Weights of the tokens of a mini-batch whose samples have these [S] lengths.

        token-mean               sum over all tokens / number of tokens
        seq-mean-token-sum       mean over samples of the sum over a sample's tokens
        seq-mean-token-mean      mean over samples of the mean over a sample's tokens
        seq-mean-token-sum-norm  seq-mean-token-sum / loss_scale_factor

    Args:
        is_kept: [a] False leaves a token out, as if its sample did not have it; a sample without tokens is none.
    """
    kept = is_kept.astype(np.float64)
    num_kept_S = np.add.reduceat(kept, np.cumsum(lengths) - lengths)
    num_samples = float(np.count_nonzero(num_kept_S))
    normaliser = num_samples
    match mode:
        case "token-mean":
            normaliser = float(num_kept_S.sum())
        case "seq-mean-token-mean":
            kept = kept * np.repeat(1.0 / np.maximum(num_kept_S, 1.0), lengths)
        case "seq-mean-token-sum-norm":
            assert loss_scale_factor is not None
            normaliser = num_samples * loss_scale_factor
        case "seq-mean-token-sum":
            pass
    # Where nothing is kept all weights are 0, and so is the loss.
    return TokenWeights(per_token=kept.astype(np.float32), normaliser=normaliser or 1.0)


def mean_weights(chosen: NDArray[np.bool_], weights: TokenWeights) -> NDArray[np.float32]:
    """[a] factors of tokens' losses with which ``weights`` make the mean over the ``chosen`` tokens, of those that are
    not left out, whatever the mode."""
    counts = chosen & (weights.per_token > 0)
    number = max(int(counts.sum()), 1)
    each = weights.normaliser / (number * np.where(counts, weights.per_token, 1.0))
    return np.where(counts, each, 0.0).astype(np.float32)
