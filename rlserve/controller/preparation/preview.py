"""What ``--dry-run`` tells of the data: what a run finds before it starts anything."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from rlserve.config.tree import RunConfig
from rlserve.controller.preparation.environment_trial import try_environment
from rlserve.controller.preparation.prompts import PreparedPrompts, prepare_prompts
from rlserve.controller.preparation.reward_trial import TryReward, describe_score, reward_trial
from rlserve.controller.preparation.supervised import prepare_data, with_steps
from rlserve.rollout.dataset.factory import looks_local
from rlserve.rollout.end_tokens import describe
from rlserve.rollout.environments.verifiers.names import is_verifiers
from rlserve.rollout.rewards.factory import check_reward_model
from rlserve.tasks import find_made_model, is_builtin


def preview_data(config: RunConfig) -> str:
    """Lines about the data that a run learns from. Nothing is made or fetched.

    Raises:
        UserError: what a run would end with before it starts.
    """
    if config.algorithm.needs.rollouts:
        with reward_trial(config, None) as try_reward:
            return preview_prompts(config, try_reward)
    if (folder := _model_folder(config)) is None or _remote_data(config) is not None:
        return "data: read when the run starts, which fetches or makes what is not there"
    source = prepare_data(config, str(folder)).source
    return f"data: {source.describe()}\nsteps: {with_steps(config, source).num_steps:,} of {source.batch_size:,} rows"


def preview_prompts(config: RunConfig, try_reward: TryReward) -> str:
    """Lines about prompts, lengths and end tokens, one prompt as the model reads it, and what the reward gives. Nothing
    is made or fetched.

    Raises:
        UserError: what a run would end with before it starts.
    """
    reward_models = config.reward.model_paths
    if reward_models and all(Path(path).expanduser().is_dir() for path in reward_models):
        check_reward_model(config.reward, policy_has_template=config.data.apply_chat_template)
    model, folder = config.model.path, _model_folder(config)
    if folder is None:
        return f"prompts: looked at when the run starts, which {'makes' if is_builtin(model) else 'fetches'} {model}"
    if (remote := _remote_data(config)) is not None:
        return f"prompts: looked at when the run starts, which fetches {remote}"
    found = prepare_prompts(config, str(folder))
    trial = try_reward(found.prompts.held_out, found.tokenizer)
    reward = [] if trial is None else [f"the reward of a reference answer: {describe_score(trial)}"]
    return "\n".join([*_lines(config, found), *reward, *_environment(config, found)])


def _model_folder(config: RunConfig) -> Path | None:
    """Of the model, where it is there already."""
    model = config.model.path
    folder = find_made_model(model) if is_builtin(model) else Path(model).expanduser()
    return folder if folder is not None and folder.is_dir() else None


def _remote_data(config: RunConfig) -> str | None:
    """Data that would have to be fetched."""
    data = (config.data.path, config.data.held_out_path)
    return next((path for path in data if path and not _is_here(path)), None)


def _is_here(path: str) -> bool:
    return is_builtin(path) or is_verifiers(path) or looks_local(path)


def _environment(config: RunConfig, found: PreparedPrompts) -> Iterator[str]:
    if config.environment.name is not None:
        prompt = found.prompts.held_out[0]
        try_environment(config.environment, prompt, None)
        yield f"the environment was made and reset for prompt {prompt.id}: {config.environment.name}"


def _lines(config: RunConfig, found: PreparedPrompts) -> Iterator[str]:
    prompts, longest = found.prompts, len(found.prompts.longest.prompt_token_ids)
    yield f"prompts: {prompts.source.num_prompts:,} to train on, {len(prompts.held_out):,} held out"
    cache = "" if found.num_cache_tokens is None else f", the KV cache holds {found.num_cache_tokens:,}"
    yield (
        f"longest: {longest:,} tokens of prompt + {config.rollout.max_tokens:,} of answer = "
        f"{found.num_request_tokens:,} tokens; the model takes {found.max_model_len:,}{cache}"
    )
    ends = ", ".join(describe(found.tokenizer, token) for token in found.end_tokens.all) or "no token"
    yield f"answers end at: {ends}" + "".join(f", {json.dumps(stop)}" for stop in config.rollout.stop)
    example = prompts.held_out[0]
    yield f"one prompt as the model reads it ({len(example.prompt_token_ids):,} tokens):"
    yield from (f"  {line}" for line in example.prompt_rendered.split("\n"))
    yield f"its reference answer: {json.dumps(example.answer, ensure_ascii=False)}"
