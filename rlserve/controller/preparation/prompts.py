"""The prompts of a run, and whether model, tokenizer and KV cache fit them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rlserve.config.tree import RunConfig
from rlserve.controller.preparation.verifiers_data import data_of_verifiers
from rlserve.engine.kv_cache.capacity import num_cache_tokens, token_bytes
from rlserve.engine.models.base import ModelSpec
from rlserve.engine.models.checkpoint import check_weights
from rlserve.engine.models.divisibility import check_divides
from rlserve.engine.models.factory import read_model_spec
from rlserve.errors import ConfigurationError, Problem
from rlserve.pool.discovery import discover_machine
from rlserve.rollout.config import DataConfig
from rlserve.rollout.end_tokens import EndTokens, find_end_tokens
from rlserve.rollout.environments.verifiers.names import is_verifiers
from rlserve.rollout.prompt_source import Prompts, load_prompts
from rlserve.rollout.tokenizer_loading import load_tokenizer
from rlserve.roofline.accelerators import is_cpu
from rlserve.tasks import is_builtin, resolve_data

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedPrompts:
    """Data, tokenizer and end tokens of a run."""

    tokenizer: PreTrainedTokenizerBase
    prompts: Prompts
    end_tokens: EndTokens
    num_request_tokens: int
    """The longest prompt with the longest answer."""
    max_model_len: int
    """Most tokens of prompt and answer that the model takes."""
    num_cache_tokens: int | None
    """Tokens that a KV cache holds; None where a GPU's free memory will decide."""


def prepare_prompts(config: RunConfig, model_path: str) -> PreparedPrompts:
    """Look at the model in the folder ``model_path``, its weights included, and load and check the data of a run on it.

    Raises:
        UserError: model, tokenizer or data cannot be used, or a prompt with its answer does not fit.
    """
    check_weights(Path(model_path))
    spec = read_model_spec(model_path)
    check_divides(spec, config.rollout.engine.tensor_parallel_size)
    engine = config.rollout.engine
    max_model_len = min(engine.max_model_len or spec.max_position, spec.max_position)
    room = max_model_len - config.rollout.max_tokens
    if room < 1:
        message = (
            f"leaves no room for a prompt: the model takes {max_model_len} tokens, got {config.rollout.max_tokens}"
        )
        raise ConfigurationError([Problem("rollout.max_tokens", message)])
    tokenizer = load_tokenizer(config.model.tokenizer_path or model_path)
    data = _data(config, tokenizer)
    prompts = load_prompts(
        data,
        tokenizer,
        seed=config.seed,
        max_prompt_tokens=min(room, data.max_prompt_tokens or room),
        prompts_per_step=config.rollout.prompts_per_step,
    )
    num_request_tokens = len(prompts.longest.prompt_token_ids) + config.rollout.max_tokens
    num_cached = num_cache_tokens(engine, spec, on_cpu=_has_cpu_slots(config))
    if num_cached is not None and num_request_tokens > num_cached:
        raise ConfigurationError([_cache_too_small(config, spec, num_request_tokens, num_cached)])
    return PreparedPrompts(
        tokenizer=tokenizer,
        prompts=prompts,
        end_tokens=find_end_tokens(tokenizer, data, of_model=spec.eos_token_ids, vocab_size=spec.vocab_size),
        num_request_tokens=num_request_tokens,
        max_model_len=max_model_len,
        num_cache_tokens=num_cached,
    )


def _data(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> DataConfig:
    if is_verifiers(config.data.path):
        return data_of_verifiers(config, tokenizer)
    if not is_builtin(config.data.path):
        return config.data
    train, held_out = resolve_data(config.data.path)
    return replace(config.data, path=str(train), held_out_path=str(held_out))


def _has_cpu_slots(config: RunConfig) -> bool:
    if config.pool.slots == "auto":
        return config.launch.kind == "local" and not discover_machine()
    return any(is_cpu(group.type) for group in config.pool.slots)


def _cache_too_small(config: RunConfig, spec: ModelSpec, num_needed: int, num_cached: int) -> Problem:
    """An answer would be cut off, silently, where the cache ends."""
    engine = config.rollout.engine
    num_blocks = -(-num_needed // engine.block_size)
    key, least = "num_blocks", num_blocks
    if engine.num_blocks is None:
        key, least = "kv_cache_bytes", num_blocks * engine.block_size * token_bytes(engine, spec)
    return Problem(
        f"rollout.engine.{key}",
        f"the KV cache holds {num_cached:,} tokens, but one prompt with its answer may take {num_needed:,} "
        f"({num_needed - config.rollout.max_tokens:,} of the longest prompt, rollout.max_tokens="
        f"{config.rollout.max_tokens}): set it to at least {least} (more for several answers at a time), or lower "
        f"rollout.max_tokens or data.max_prompt_tokens",
    )
