"""From scored prompt groups to the flat arrays that the trainer steps on.

Legend: B samples, P prompt tokens of a sample, R response tokens of a sample, T = sum of P + R, A = sum of R.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from rlserve.rollout.groups import GreedyAnswer, ScoredGroup
from rlserve.trainers.batch import Batch, GreedyAnswers


def build_batch(scored_groups: Sequence[ScoredGroup]) -> Batch:
    """Lay the samples of ``scored_groups`` end to end, groups in order and samples by index.

    A sample is named ``"{group}/{index}#{attempt}"``.
    """
    pairs = [(scored, sample) for scored in scored_groups for sample in scored.output.samples]
    tokens = [sample.tokens for _, sample in pairs]
    prompts = [np.array(scored.group.prompt_token_ids, dtype=np.int32) for scored in scored_groups]
    num_samples = [len(scored.output.samples) for scored in scored_groups]
    group_index = np.repeat(np.arange(len(scored_groups)), num_samples)
    pieces = chain.from_iterable(
        (prompts[group], sample.token_ids) for group, sample in zip(group_index.tolist(), tokens, strict=True)
    )
    return Batch(
        sample_ids=tuple(f"{scored.group.id}/{sample.index}#{scored.attempt}" for scored, sample in pairs),
        group_ids=tuple(scored.group.id for scored, _ in pairs),
        prompt_lengths=np.repeat(np.array([len(prompt) for prompt in prompts], dtype=np.int32), num_samples),
        response_lengths=np.array([len(sample) for sample in tokens], dtype=np.int32),
        token_ids=np.concatenate(list(pieces)),
        loss_mask=_loss_mask(scored_groups),
        log_probs=np.concatenate([sample.log_probs for sample in tokens]),
        behaviour_log_probs=np.concatenate([sample.behaviour_log_probs for sample in tokens]),
        weight_versions=np.concatenate([sample.weight_versions for sample in tokens]).astype(np.int32),
        turn_rewards=_turn_rewards(scored_groups),
        rewards=np.array([reward for scored in scored_groups for reward in scored.rewards], dtype=np.float32),
        reward_components=_components(scored_groups),
        finish_reasons=tuple(str(sample.finish_reason) for _, sample in pairs),
        greedy_answers=_greedy_answers([scored.greedy for scored, _ in pairs]),
    )


def _greedy_answers(of_samples: Sequence[GreedyAnswer | None]) -> GreedyAnswers | None:
    """[B] those of all samples or of none."""
    found = [greedy for greedy in of_samples if greedy is not None]
    if not found:
        return None
    assert len(found) == len(of_samples), "all groups are asked for a greedy answer, or none"
    return GreedyAnswers(
        rewards=np.array([greedy.reward for greedy in found], dtype=np.float32),
        lengths=np.array([greedy.num_tokens for greedy in found], dtype=np.int32),
        finish_reasons=tuple(greedy.finish_reason for greedy in found),
    )


def _loss_mask(scored_groups: Sequence[ScoredGroup]) -> NDArray[np.bool_]:
    """[A] all tokens, but for what an environment said."""
    masks = []
    for scored in scored_groups:
        if scored.conversations:
            masks += [conversation.loss_mask for conversation in scored.conversations]
        else:
            masks.append(np.ones(sum(len(sample.tokens) for sample in scored.output.samples), dtype=bool))
    return np.concatenate(masks)


def _turn_rewards(scored_groups: Sequence[ScoredGroup]) -> NDArray[np.float32] | None:
    """[A] the environment's reward after each turn, at the turn's last token; None without an environment."""
    if not any(scored.conversations for scored in scored_groups):
        return None
    found = []
    for scored in scored_groups:
        for number, sample in enumerate(scored.output.samples):
            rewards = np.zeros(len(sample.tokens), dtype=np.float32)
            if scored.conversations:
                conversation = scored.conversations[number]
                rewards[[end - 1 for _, end in conversation.turn_spans()]] = conversation.turn_rewards
            found.append(rewards)
    return np.concatenate(found)


def _components(scored_groups: Sequence[ScoredGroup]) -> dict[str, NDArray[np.float32]]:
    """[B] each: the further numbers of the rewards, NaN where a sample has none by that name."""
    of_samples: list[Mapping[str, float]] = [
        parts for scored in scored_groups for parts in (scored.reward_parts or ({},) * len(scored.rewards))
    ]
    names = dict.fromkeys(chain.from_iterable(of_samples))
    return {name: np.array([parts.get(name, np.nan) for parts in of_samples], dtype=np.float32) for name in names}
