"""Scoring a checkpoint on held-out prompts in one process: an engine, the reward, no Ray.

::

    checkpoint ─► Engine ─┐
    prompts ──────────────┴─► answers ─► reward ─► EvaluatedAnswer … ─► CheckpointScore

The reward has processes of its own, and the deadline that a run gives it: answers that it hangs on are left out.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import torch

from rlserve.config.tree import RunConfig
from rlserve.controller.preparation.prompts import PreparedPrompts, prepare_prompts
from rlserve.engine import Engine, Request, RequestOutput, SamplingParams
from rlserve.engine.requests.request import FinishReason, SampleOutput
from rlserve.pool.config import PoolConfig, SlotGroupConfig
from rlserve.rollout.answer_text import AnswerText
from rlserve.rollout.end_tokens import EndTokens
from rlserve.rollout.groups import PromptGroup
from rlserve.rollout.rewards.base import RewardSample, Score
from rlserve.rollout.rewards.factory import check_reward_model
from rlserve.rollout.rewards.samples import reward_sample
from rlserve.rollout.scoring import Scorer, score_in_groups
from rlserve.rollout.scoring.factory import create_local_scorer

OnProgress = Callable[[int, int], None]
"""Called with the number of prompts that are answered, and of all."""


@dataclass(frozen=True, kw_only=True)
class EvaluatedAnswer:
    """One answer to a held-out prompt."""

    prompt_id: str
    index: int
    """Among the answers to the same prompt."""
    prompt: str
    """As the model read it."""
    reference: object
    """The data's own answer."""
    response: str
    reward: float | None
    """None: it could not be scored, or the reward left it out."""
    reward_parts: Mapping[str, float]
    error: str | None
    """Why it could not be scored."""
    is_right: bool
    """Whether the reward reaches ``evaluation.success_threshold``."""
    finish_reason: str
    num_response_tokens: int


@dataclass(frozen=True, kw_only=True)
class CheckpointScore:
    """What a checkpoint achieved. Shares and means are over the answers that were scored; None where none was."""

    share_right: float | None
    share_of_prompts_right: float | None
    """Of the prompts with a scored answer: those that at least one answer got right."""
    mean_reward: float | None
    share_cut: float | None
    """Of all answers: cut off by ``rollout.max_tokens``."""
    num_prompts: int
    num_answers: int
    num_scored: int
    num_failed: int
    """Answers that the engine refused, or the reward failed on."""
    num_left_out: int
    """Answers that the reward left out, by None."""


def evaluate_checkpoint(
    config: RunConfig, model_path: Path, *, num_answers: int, on_progress: OnProgress
) -> tuple[CheckpointScore, list[EvaluatedAnswer]]:
    """Answer every held-out prompt of ``config`` ``num_answers`` times with the model in ``model_path``, and score.

    Sampling is that of a run's own evaluation: ``evaluation.temperature``, no top-k and no top-p.

    Raises:
        UserError: model, data or reward cannot be used.
    """
    reward_config = check_reward_model(config.reward, policy_has_template=config.data.apply_chat_template)
    with asyncio.Runner() as runner, contextlib.closing(create_local_scorer(reward_config)) as scorer:
        runner.run(scorer.start())
        found = prepare_prompts(replace(config, pool=_pool_here()), str(model_path))
        outputs = generate(
            Engine(model_path, config.rollout.engine),
            found.prompts.held_out,
            sampling_of(config, found.end_tokens, num_answers),
            on_progress,
        )
        answers = runner.run(score_all(config, found, scorer, outputs))
    return summarise(answers), answers


def sampling_of(config: RunConfig, end_tokens: EndTokens, num_answers: int) -> SamplingParams:
    """How answers are drawn."""
    return SamplingParams(
        n=num_answers,
        temperature=config.evaluation.temperature,
        max_tokens=config.rollout.max_tokens,
        seed=config.seed,
        stop=config.rollout.stop,
        stop_token_ids=end_tokens.added,
    )


def generate(
    engine: Engine, prompts: Sequence[PromptGroup], sampling: SamplingParams, on_progress: OnProgress
) -> dict[str, RequestOutput]:
    """The answers to each prompt by its id. The engine is closed."""
    with contextlib.closing(engine):
        for prompt in prompts:
            engine.add(Request(id=prompt.id, prompt_token_ids=prompt.prompt_token_ids, sampling=sampling))
        outputs: dict[str, RequestOutput] = {}
        while engine.has_work:
            for output in engine.step():
                outputs[output.request_id] = output
                on_progress(len(outputs), len(prompts))
    return outputs


async def score_all(
    config: RunConfig, found: PreparedPrompts, scorer: Scorer, outputs: Mapping[str, RequestOutput]
) -> list[EvaluatedAnswer]:
    """Score the answers, as many together as a run does: the deadline means the same."""
    decode = AnswerText(
        found.tokenizer, end_token_ids=found.end_tokens.all, skip_special_tokens=config.reward.skip_special_tokens
    )
    held_out = found.prompts.held_out
    refused = [_refused(prompt, error) for prompt in held_out if (error := outputs[prompt.id].error) is not None]
    answers = [(prompt, answer) for prompt in held_out for answer in outputs[prompt.id].samples]
    samples = [_sample(prompt, answer, decode) for prompt, answer in answers]
    scores = await score_in_groups(scorer, samples, config.rollout.samples_per_prompt)
    return refused + [
        _evaluated(prompt, answer, sample, score, config.evaluation.success_threshold)
        for (prompt, answer), sample, score in zip(answers, samples, scores, strict=True)
    ]


def summarise(answers: Sequence[EvaluatedAnswer]) -> CheckpointScore:
    """The numbers that the answers come down to."""
    scored = [answer for answer in answers if answer.reward is not None]
    made = [answer for answer in answers if answer.finish_reason != FinishReason.ERROR]
    prompts = {answer.prompt_id for answer in scored}
    solved = {answer.prompt_id for answer in scored if answer.is_right}
    return CheckpointScore(
        share_right=_mean([float(answer.is_right) for answer in scored]),
        share_of_prompts_right=len(solved) / len(prompts) if prompts else None,
        mean_reward=_mean([answer.reward for answer in scored if answer.reward is not None]),
        share_cut=_mean([float(answer.finish_reason == FinishReason.LENGTH) for answer in made]),
        num_prompts=len({answer.prompt_id for answer in answers}),
        num_answers=len(answers),
        num_scored=len(scored),
        num_failed=sum(answer.error is not None for answer in answers),
        num_left_out=sum(answer.reward is None and answer.error is None for answer in answers),
    )


def _pool_here() -> PoolConfig:
    """Slots of the kind that this process computes on: memory limits are checked against it."""
    kind = "gpu" if torch.cuda.is_available() else "cpu"
    return PoolConfig(slots=(SlotGroupConfig(type=kind, count=2),))


def _sample(prompt: PromptGroup, answer: SampleOutput, decode: AnswerText) -> RewardSample:
    return reward_sample(prompt, answer, id=f"{prompt.id}/{answer.index}", response=decode(answer.token_ids))


def _evaluated(
    prompt: PromptGroup, answer: SampleOutput, sample: RewardSample, score: Score, threshold: float
) -> EvaluatedAnswer:
    return EvaluatedAnswer(
        prompt_id=prompt.id,
        index=answer.index,
        prompt=prompt.prompt_rendered,
        reference=prompt.answer,
        response=sample.response,
        reward=score.value,
        reward_parts=score.parts,
        error=score.error,
        is_right=score.value is not None and score.value >= threshold,
        finish_reason=str(answer.finish_reason),
        num_response_tokens=len(answer.token_ids),
    )


def _refused(prompt: PromptGroup, error: str) -> EvaluatedAnswer:
    return EvaluatedAnswer(
        prompt_id=prompt.id,
        index=0,
        prompt=prompt.prompt_rendered,
        reference=prompt.answer,
        response="",
        reward=None,
        reward_parts={},
        error=error,
        is_right=False,
        finish_reason=str(FinishReason.ERROR),
        num_response_tokens=0,
    )


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
