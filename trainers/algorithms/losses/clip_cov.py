"""Clip-Cov (Cui et al. 2025, arXiv 2505.22617): some tokens that take much entropy get no gradient."""

from __future__ import annotations

from rlserve.trainers.algorithms.base import PolicyTokens
from rlserve.trainers.algorithms.config import UpdateConfig
from rlserve.trainers.algorithms.losses.base import LossTerm
from rlserve.trainers.algorithms.losses.vanilla import vanilla


def clip_cov(tokens: PolicyTokens, config: UpdateConfig) -> LossTerm:
    """The clipped surrogate, 0 at selected tokens."""
    assert tokens.is_selected is not None
    term = vanilla(tokens, config)
    return LossTerm(
        per_token=term.per_token.masked_fill(tokens.is_selected, 0.0), is_clipped=term.is_clipped | tokens.is_selected
    )
