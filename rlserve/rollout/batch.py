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
    pairs = [(scored, sample) for scored in scored_groups for sample in scored.output.samples]
    tokens = [sample.tokens for _, sample in pairs]
    prompts = [np.array(scored.group.prompt_token_ids, dtype=np.int32) for scored in scored_groups]
    num_samples = [len(scored.output.samples) for scored in scored_groups]
    group_index = np.repeat(np.arange(len(scored_groups), dtype=np.int32), num_samples)
    pieces = chain.from_iterable(
        (prompts[group], sample.token_ids) for group, sample in zip(group_index.tolist(), tokens, strict=True)
    )
    return Batch(
        sample_ids=tuple(f"{scored.group.id}/{sample.index}#{scored.attempt}" for scored, sample in pairs),
        group_index=group_index,
        prompt_lengths=np.repeat(np.array([len(prompt) for prompt in prompts], dtype=np.int32), num_samples),
        response_lengths=np.array([len(sample) for sample in tokens], dtype=np.int32),
        token_ids=np.concatenate(list(pieces)),
        log_probs=np.concatenate([sample.log_probs for sample in tokens]),
        behaviour_log_probs=np.concatenate([sample.behaviour_log_probs for sample in tokens]),
        weight_versions=np.concatenate([sample.weight_versions for sample in tokens]).astype(np.int32),
        rewards=np.array([reward for scored in scored_groups for reward in scored.rewards], dtype=np.float32),
        is_truncated=np.array([sample.finish_reason is FinishReason.LENGTH for _, sample in pairs]),
    )
