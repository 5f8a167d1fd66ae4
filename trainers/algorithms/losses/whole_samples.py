"""Means over whole samples, for losses that get all tokens of a sample together.

Legend: a tokens, those of a sample one after the other; S samples.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sample_means(per_token: Tensor, samples: Tensor) -> Tensor:
    """[a] for each token the mean over all tokens of its sample, with gradient.

    Added up sample by sample in the order of the tokens, so every rank gets the same bits.
    """
    _, sample_of_token, lengths_S = torch.unique_consecutive(samples, return_inverse=True, return_counts=True)
    means_S: Tensor = torch.segment_reduce(per_token, "mean", lengths=lengths_S)
    return means_S[sample_of_token]
