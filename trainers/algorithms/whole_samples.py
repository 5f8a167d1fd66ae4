"""Sums, means and maxima over whole samples, for what gets all tokens of a sample together.

Legend: a tokens, those of a sample one after the other; S samples.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def over_samples(reduction: Literal["sum", "mean", "max"], per_token: Tensor, samples: Tensor) -> Tensor:
    """[a] for each token the sum, mean or largest over all tokens of its sample, with gradient.

    Reduced sample by sample in the order of the tokens, so every rank gets the same bits.
    """
    _, sample_of_token, lengths_S = torch.unique_consecutive(samples, return_inverse=True, return_counts=True)
    reduced_S: Tensor = torch.segment_reduce(per_token, reduction, lengths=lengths_S)
    return reduced_S[sample_of_token]
