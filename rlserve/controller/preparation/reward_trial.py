"""Trying the reward on held-out prompts before anything is started."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rlserve.config.tree import RunConfig
from rlserve.engine.requests.generated_tokens import GeneratedTokens
from rlserve.engine.requests.request import FinishReason, SampleOutput
from rlserve.rollout.groups import PromptGroup
from rlserve.rollout.rewards.base import RewardSample, Score
from rlserve.rollout.rewards.probe import RewardProbe
from rlserve.rollout.rewards.samples import reward_sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_PROMPTS = 4
"""A reward that fails on as many held-out prompts is taken for broken."""


class TryReward(Protocol):
    """Tries the reward that was imported before."""

    def __call__(self, held_out: Sequence[PromptGroup], tokenizer: PreTrainedTokenizerBase) -> Score | None:
        """What it gave for a reference answer; None where it was not tried.

        Raises:
            RewardError: it fails on all prompts that it is tried on, hangs or crashes.
        """


@contextmanager
def reward_trial(config: RunConfig, log_path: Path | None) -> Iterator[TryReward]:
    """Load the reward in a process of its own; what it yields scores held-out prompts there.

    Reward models are not tried, so of several rewards the others; nor is anything with GPUs of its own, which may be
    no part of this machine.

    Raises:
        RewardError: it cannot be found or loaded.
    """
    reward = config.reward.without_models
    if reward is None or not reward.is_named or reward.num_gpus > 0:
        yield lambda held_out, tokenizer: None
        return
    with RewardProbe(reward, log_path) as probe:
        probe.load()
        yield lambda held_out, tokenizer: probe.try_on(
            trial_samples(held_out, tokenizer), samples_per_prompt=config.num_answers_per_prompt
        )


def describe_score(score: Score) -> str:
    """``1, with acc 1``, or ``None`` where the reward leaves the answer out."""
    value = "None" if score.value is None else f"{score.value:g}"
    return value + "".join(f", with {name} {part:g}" for name, part in score.parts.items())


def trial_samples(held_out: Sequence[PromptGroup], tokenizer: PreTrainedTokenizerBase) -> list[RewardSample]:
    """Some held-out prompts, those with a reference answer first; it is the response too, or else that is empty."""
    chosen = sorted(held_out, key=lambda group: group.answer is None)[:MAX_PROMPTS]
    return [_sample(group, group.answer if isinstance(group.answer, str) else "", tokenizer) for group in chosen]


def _sample(group: PromptGroup, response: str, tokenizer: PreTrainedTokenizerBase) -> RewardSample:
    tokens = GeneratedTokens.of(tokenizer(response, add_special_tokens=False).input_ids)
    output = SampleOutput(index=0, tokens=tokens, finish_reason=FinishReason.STOP)
    return reward_sample(group, output, id=group.id, response=response)
