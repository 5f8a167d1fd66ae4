"""How the losses of single tokens make the loss of a mini-batch, under verl's names (``loss_agg_mode``).

Legend: S samples of the mini-batch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rlserve.trainers.algorithms.base import TokenWeights


def token_mean(lengths: NDArray[np.int32]) -> TokenWeights:
    """``token-mean``: every token counts the same, whatever the length [S] of its sample."""
    num_tokens = int(lengths.sum())
    return TokenWeights(per_token=np.ones(num_tokens, dtype=np.float32), normaliser=float(num_tokens))


def sequence_mean(lengths: NDArray[np.int32]) -> TokenWeights:
    """``seq-mean-token-mean``: the mean over samples of the mean over each sample's tokens."""
    per_token = np.repeat(1.0 / lengths, lengths).astype(np.float32)
    return TokenWeights(per_token=per_token, normaliser=float(len(lengths)))
