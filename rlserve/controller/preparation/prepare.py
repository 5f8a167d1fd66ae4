"""What is found, made and checked before any worker process is started."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rlserve.config.tree import RunConfig
from rlserve.controller.preparation.environment_trial import try_environment
from rlserve.controller.preparation.model_folder import find_model_folder
from rlserve.controller.preparation.prompts import prepare_prompts
from rlserve.controller.preparation.reward_trial import reward_trial
from rlserve.rollout.answer_text import AnswerText
from rlserve.rollout.config import RewardConfig
from rlserve.rollout.end_tokens import EndTokens
from rlserve.rollout.groups import PromptGroup
from rlserve.rollout.prompt_source import PromptSource
from rlserve.rollout.rewards.factory import check_reward_model
from rlserve.weights.canary import CanaryPrompts, choose_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True, eq=False)
class Preparation:
    """Everything that the controller of a run that generates needs besides the configuration."""

    model_path: str
    tokenizer: PreTrainedTokenizerBase
    source: PromptSource
    held_out: tuple[PromptGroup, ...]
    end_tokens: EndTokens
    reward: RewardConfig
    """As the user gave it, with what depends on the reward model decided."""
    decode: AnswerText
    """The text of an answer, as the reward sees it."""
    canary: CanaryPrompts = ()
    """Prompts that trainer and replica must agree on."""


def prepare(config: RunConfig, on_status: Callable[[str], None], *, reward_log: Path | None = None) -> Preparation:
    """Make the built-in model if it is asked for, load tokenizer and prompts, find the reward and try it.

    What the reward prints while it is tried goes to ``reward_log``.

    Raises:
        UserError: one of them cannot be used; nothing was started.
    """
    reward = check_reward_model(config.reward, policy_has_template=config.data.apply_chat_template)
    with reward_trial(config, reward_log) as try_reward:
        preparation = _prepare(config, reward, on_status)
        on_status("trying the reward")
        try_reward(preparation.held_out, preparation.tokenizer)
    if config.environment.name is not None:
        on_status("trying the environment")
        log_path = None if reward_log is None else reward_log.with_name("environment.log")
        try_environment(config.environment, preparation.held_out[0], log_path)
    return preparation


def _prepare(config: RunConfig, reward: RewardConfig, on_status: Callable[[str], None]) -> Preparation:
    model_path = find_model_folder(config.model.path, on_status)
    on_status("loading prompts")
    found = prepare_prompts(config, model_path)
    canary = choose_prompts(
        [group.prompt_token_ids for group in found.prompts.held_out],
        num_prompts=config.weights.canary.num_prompts,
        max_model_len=found.max_model_len,
        seed=config.seed,
    )
    return Preparation(
        model_path=model_path,
        tokenizer=found.tokenizer,
        source=found.prompts.source,
        held_out=found.prompts.held_out,
        end_tokens=found.end_tokens,
        reward=reward,
        decode=AnswerText(
            found.tokenizer,
            end_token_ids=found.end_tokens.all,
            skip_special_tokens=config.reward.skip_special_tokens,
        ),
        canary=canary,
    )
