"""The canary: a few fixed prompts, whose log-probabilities under one version trainer and replica must agree on.

A fingerprint proves which weights an engine holds, when it took them. That it computes with them what the trainer
would, and still holds them, only log-probabilities tell. They never agree to the bit, since the two add up in another
order and round to other types. Mean absolute difference over a prompt of 16 tokens, in nats, of the built-in model on a
CPU, among 64 prompts:

===================================  ========  ========
engine and trainer compute in            mean   largest
===================================  ========  ========
float32 and float32                  0.000001  0.000003
bfloat16 and float32                    0.009     0.032
bfloat16 and bfloat16                   0.010     0.033
bfloat16, weights int8, and float32     0.012     0.047
bfloat16, cache int8, and float32       0.013     0.045
===================================  ========  ========

Other weights, or a kernel that is wrong, make nats of difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain, cycle, islice

import numpy as np

from rlserve.engine.config import EngineConfig
from rlserve.trainers.batch import Batch
from rlserve.weights.config import CanaryConfig

NUM_TOKENS = 16
"""Of each prompt."""
EXACT_TOLERANCE = 0.001
"""Where engine and trainer compute in float32."""
ROUNDED_TOLERANCE = 0.5
"""Where one of them does not."""
_FLOOR = -10.0
"""Log-probabilities below count as this: rounding moves them by whole nats, and nobody draws such tokens."""

CanaryPrompts = tuple[tuple[int, ...], ...]
"""Token ids."""
CanaryScores = tuple[tuple[float, ...], ...]
"""Raw log-probability of each token but the first, of each prompt; nothing at all where no canary is due."""


def choose_prompts(
    prompts: Sequence[Sequence[int]], *, num_prompts: int, max_model_len: int, seed: int
) -> CanaryPrompts:
    """Some of a run's prompts, drawn by its seed, laid end to end and cut into pieces of one length: the same in every
    life of the run, and long enough whatever the prompts are."""
    order = np.random.default_rng(seed).permutation(len(prompts))
    tokens = chain.from_iterable(cycle([prompts[place] for place in order]))
    length = min(NUM_TOKENS, max_model_len)
    return tuple(tuple(int(token) for token in islice(tokens, length)) for _ in range(num_prompts))


def tolerance_of(config: CanaryConfig, engine: EngineConfig, trainer_dtype: str) -> float:
    """The largest difference of a sound replica: as configured, or by what the two compute in."""
    if config.tolerance is not None:
        return config.tolerance
    rounds = engine.weight_dtype != "auto" or engine.kv_cache_dtype != "auto"
    is_exact = (engine.dtype, trainer_dtype) == ("float32", "float32") and not rounds
    return EXACT_TOLERANCE if is_exact else ROUNDED_TOLERANCE


def difference(expected: CanaryScores, found: CanaryScores) -> float:
    """Of the prompt that differs most: mean absolute difference over its tokens, in nats; infinite where a
    log-probability is not finite."""
    return max((_mean_difference(*pair) for pair in zip(expected, found, strict=True)), default=0.0)


def _mean_difference(expected: Sequence[float], found: Sequence[float]) -> float:
    both_2T = np.array([expected, found])
    if not np.isfinite(both_2T).all():
        return math.inf
    trained_T, served_T = np.maximum(both_2T, _FLOOR)
    return float(np.abs(trained_T - served_T).mean())


def batch_of(prompts: CanaryPrompts) -> Batch:
    """As a trainer scores them: all tokens but the first are the response."""
    lengths = np.array([len(prompt) - 1 for prompt in prompts], dtype=np.int32)
    names = tuple(f"canary {number}" for number in range(len(prompts)))
    zeros_A = np.zeros(int(lengths.sum()), dtype=np.float32)
    return Batch(
        sample_ids=names,
        group_ids=names,
        prompt_lengths=np.ones_like(lengths),
        response_lengths=lengths,
        token_ids=np.array(list(chain.from_iterable(prompts)), dtype=np.int32),
        loss_mask=np.ones(len(zeros_A), dtype=np.bool_),
        log_probs=zeros_A,
        behaviour_log_probs=zeros_A,
        weight_versions=np.zeros(len(zeros_A), dtype=np.int32),
        rewards=np.zeros(len(prompts), dtype=np.float32),
        finish_reasons=("length",) * len(prompts),
    )
