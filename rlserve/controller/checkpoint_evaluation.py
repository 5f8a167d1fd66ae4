"""Scoring a checkpoint on held-out prompts in one process: an engine, the reward, no Ray.

::

    checkpoint ─► Engine ─┐
    prompts ──────────────┴─► answers (to the ends of their conversations) ─► reward ─► EvaluatedAnswer …
                                                                                      ─► CheckpointScore

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
from rlserve.controller.engine_desk import EngineDesk
from rlserve.controller.preparation.prompts import PreparedPrompts, prepare_prompts
from rlserve.engine import Engine, RequestOutput, SamplingParams
from rlserve.engine.requests.request import FinishReason, SampleOutput
from rlserve.errors import EnvironmentFailedError
from rlserve.pool.config import PoolConfig, SlotGroupConfig
from rlserve.rollout.answer_text import AnswerText
from rlserve.rollout.conversations.factory import create_player
from rlserve.rollout.conversations.player import ConversationPlayer
from rlserve.rollout.conversations.scores import with_environment
from rlserve.rollout.end_tokens import EndTokens
from rlserve.rollout.environments.base import Environments
from rlserve.rollout.environments.factory import create_environments
from rlserve.rollout.groups import GeneratedGroup, PromptGroup
from rlserve.rollout.requests.base import RequestId, RequestKind, RequestSpec
from rlserve.rollout.requests.turns import TurnRequests
from rlserve.rollout.rewards.base import RewardSample, Score
from rlserve.rollout.rewards.factory import check_reward_model
from rlserve.rollout.rewards.samples import reward_samples
from rlserve.rollout.scoring import AnswerScorer, score_in_groups
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
    environments = create_environments(config.environment, None)
    with (
        asyncio.Runner() as runner,
        contextlib.closing(create_local_scorer(reward_config)) as scorer,
        contextlib.closing(environments) if environments is not None else contextlib.nullcontext(),
    ):
        runner.run(scorer.start())
        if environments is not None:
            runner.run(environments.start())
        found = prepare_prompts(replace(config, pool=_pool_here()), str(model_path))
        engine = Engine(model_path, config.rollout.engine)
        generated = runner.run(generate(config, engine, found, environments, num_answers, on_progress))
        answers = runner.run(score_all(config, found, scorer, generated))
    return summarise(answers), answers


def sampling_of(config: RunConfig, end_tokens: EndTokens, num_answers: int) -> SamplingParams:
    """How answers are drawn."""
    return SamplingParams(
        n=num_answers,
        temperature=config.evaluation.temperature,
        max_tokens=min(config.environment.max_turn_tokens or config.rollout.max_tokens, config.rollout.max_tokens),
        seed=config.seed,
        stop=config.rollout.stop,
        stop_token_ids=end_tokens.added,
    )


async def generate(
    config: RunConfig,
    engine: Engine,
    found: PreparedPrompts,
    environments: Environments | None,
    num_answers: int,
    on_progress: OnProgress,
) -> list[GeneratedGroup]:
    """The answers to each held-out prompt, or the conversations that they begin. The engine is closed."""
    prompts, sampling, num_done = found.prompts.held_out, sampling_of(config, found.end_tokens, num_answers), 0
    async with EngineDesk(engine) as desk:
        conversations = None
        if environments is not None:
            conversations = create_player(
                config.environment,
                config.data,
                environments,
                ask=desk.answer,
                decode=_decode(config, found),
                max_tokens=config.rollout.max_tokens,
            )

        async def answer(prompt: PromptGroup) -> GeneratedGroup:
            nonlocal num_done
            generated = await _answered(prompt, desk, sampling, conversations, config.seed)
            num_done += 1
            on_progress(num_done, len(prompts))
            return generated

        return list(await asyncio.gather(*map(answer, prompts)))


async def _answered(
    prompt: PromptGroup,
    desk: EngineDesk,
    sampling: SamplingParams,
    conversations: ConversationPlayer | None,
    seed: int,
) -> GeneratedGroup:
    request_id = RequestId(kind=RequestKind.EVALUATION, name=prompt.id)
    spec = RequestSpec(
        id=request_id, prompt_token_ids=prompt.prompt_token_ids, sampling=sampling, position=prompt.position
    )
    answered = GeneratedGroup(group=prompt, output=await desk.answer(spec))
    if conversations is None or answered.output.error is not None:
        return answered

    def turns(index: int) -> TurnRequests:
        return TurnRequests(
            kind=request_id.kind,
            name=f"{prompt.id}/{index}",
            sampling=sampling,
            position=prompt.position,
            min_version=0,
            run_seed=seed,
        )

    try:
        return await conversations.play(prompt, answered.output, turns)
    except EnvironmentFailedError as error:
        refused = RequestOutput(request_id=answered.output.request_id, samples=(), error=str(error))
        return GeneratedGroup(group=prompt, output=refused)


async def score_all(
    config: RunConfig, found: PreparedPrompts, scorer: AnswerScorer, generated: Sequence[GeneratedGroup]
) -> list[EvaluatedAnswer]:
    """Score the answers, as many together as a run does: the deadline means the same."""
    decode = _decode(config, found)
    refused = [_refused(each.group, each.output.error) for each in generated if each.output.error is not None]
    answers = [(each.group, sample) for each in generated for sample in each.output.samples]
    samples = [sample for each in generated for sample in reward_samples(each, decode)]
    scores = with_environment(
        await score_in_groups(
            scorer, samples, config.rollout.samples_per_prompt, max_failure_share=config.reward.max_failure_share
        ),
        [conversation for each in generated for conversation in each.conversations],
    )
    return refused + [
        _evaluated(prompt, answer, sample, score, config.evaluation.success_threshold)
        for (prompt, answer), sample, score in zip(answers, samples, scores, strict=True)
    ]


def _decode(config: RunConfig, found: PreparedPrompts) -> AnswerText:
    return AnswerText(
        found.tokenizer, end_token_ids=found.end_tokens.all, skip_special_tokens=config.reward.skip_special_tokens
    )


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
