"""Random tokens for policy losses, and slopes of closed forms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from rlserve.trainers.algorithms.base import Experience, PolicyTokens


def random_tokens(
    lengths: Sequence[int], *, spread: float, seed: int = 0, advantages: Sequence[float] | None = None
) -> PolicyTokens:
    """Of samples of these lengths, in float64; the log-ratios of policy, behaviour and reference to the old policy have
    this standard deviation. ``advantages`` are of samples; None draws them for each token."""
    num_tokens = sum(lengths)
    rng = np.random.default_rng(seed)
    old = -rng.uniform(0.1, 3.0, num_tokens)
    new, behaviour, reference = (old + spread * rng.normal(size=num_tokens) for _ in range(3))
    return PolicyTokens(
        log_probs=torch.tensor(new, requires_grad=True),
        old_log_probs=torch.tensor(old),
        behaviour_log_probs=torch.tensor(behaviour),
        reference_log_probs=torch.tensor(reference),
        advantages=torch.tensor(rng.normal(size=num_tokens) if advantages is None else np.repeat(advantages, lengths)),
        entropies=None,
        samples=torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)),
        is_selected=torch.tensor(rng.random(num_tokens) < 0.3),
    )


def slopes(function: Callable[[np.ndarray], np.ndarray], at: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """How the sum of what a function gives changes with each of its arguments, by central differences."""
    found = np.empty_like(at)
    for place in range(len(at)):
        shift = np.zeros_like(at)
        shift[place] = step
        found[place] = (function(at + shift).sum() - function(at - shift).sum()) / (2 * step)
    return found


def rows(flat: np.ndarray, lengths: Sequence[int]) -> list[np.ndarray]:
    """What belongs to each sample."""
    return np.split(flat, np.cumsum(lengths)[:-1])


def experience_of(rewards: Sequence[float], lengths: Sequence[int], **columns: Any) -> Experience:
    """Samples of one group each, unless a column says otherwise."""
    fields: dict[str, Any] = {
        "reward_components": {},
        "group_index": np.arange(len(rewards), dtype=np.int32),
        "finish_reasons": ("stop",) * len(rewards),
        "behaviour_log_probs": np.zeros(sum(lengths), dtype=np.float32),
        **dict.fromkeys(("log_probs", "reference_log_probs", "values", "final_values")),
        **columns,
    }
    return Experience(rewards=np.array(rewards, dtype=np.float32), lengths=np.array(lengths, dtype=np.int32), **fields)
