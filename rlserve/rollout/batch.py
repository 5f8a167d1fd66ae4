"""From scored prompt groups to the flat arrays that the trainer steps on.

Legend: B samples, P prompt tokens of a sample, R response tokens of a sample, T = sum of P + R, A = sum of R.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np

from rlserve.engine import FinishReason
from rlserve.rollout.groups import ScoredGroup
from rlserve.trainers.batch import Batch


def build_batch(scored_groups: Sequence[ScoredGroup]) -> Batch:
    """Lay the samples of ``scored_groups`` end to end, groups in order and samples by index.

    A sample is named ``"{group}/{index}#{attempt}"``.
    """
    pairs = [(scored.group, sample) for scored in scored_groups for sample in scored.output.samples]
    samples = [sample for _, sample in pairs]
    num_response_tokens = sum(len(sample.token_ids) for sample in samples)
    token_ids = chain.from_iterable((*group.prompt_token_ids, *sample.token_ids) for group, sample in pairs)
    return Batch(
        sample_ids=tuple(
            f"{scored.group.id}/{sample.index}#{scored.attempt}"
            for scored in scored_groups
            for sample in scored.output.samples
        ),
        group_index=np.repeat(
            np.arange(len(scored_groups), dtype=np.int32), [len(scored.output.samples) for scored in scored_groups]
        ),
        prompt_lengths=np.array([len(group.prompt_token_ids) for group, _ in pairs], dtype=np.int32),
        response_lengths=np.array([len(sample.token_ids) for sample in samples], dtype=np.int32),
        token_ids=np.fromiter(token_ids, dtype=np.int32),
        log_probs=np.fromiter(
            chain.from_iterable(sample.log_probs for sample in samples), dtype=np.float32, count=num_response_tokens
        ),
        behaviour_log_probs=np.fromiter(
            chain.from_iterable(sample.behaviour_log_probs for sample in samples),
            dtype=np.float32,
            count=num_response_tokens,
        ),
        weight_versions=np.fromiter(
            chain.from_iterable(sample.weight_versions for sample in samples),
            dtype=np.int32,
            count=num_response_tokens,
        ),
        rewards=np.array([reward for scored in scored_groups for reward in scored.rewards], dtype=np.float32),
        is_truncated=np.array([sample.finish_reason is FinishReason.LENGTH for sample in samples]),
    )
