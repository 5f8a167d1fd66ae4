"""Tiny models and random batches for the tests of the trainers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from rlserve.trainers import Batch

VOCABULARY = 32

_FAMILIES: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, {}),
    "qwen2": (Qwen2Config, {}),
    "qwen3": (Qwen3Config, {}),
    "mistral": (MistralConfig, {"sliding_window": 5}),
    "gemma2": (Gemma2Config, {"sliding_window": 5, "final_logit_softcapping": 2.0}),
    "gemma3": (Gemma3TextConfig, {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}),
    "qwen3_moe": (Qwen3MoeConfig, {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
}
FAMILIES = tuple(_FAMILIES)


def save_tiny_model(
    folder: Path,
    family: str = "qwen3",
    *,
    tied: bool = True,
    hidden_size: int = 32,
    initializer_range: float = 0.2,
    **fields: Any,
) -> str:
    """Write a random model of some 20,000 parameters; returns its path. ``fields`` go into its configuration."""
    config_class, own = _FAMILIES[family]
    config = config_class(
        vocab_size=VOCABULARY,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=hidden_size // 4,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        initializer_range=initializer_range,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        **own | fields,
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return str(folder)


def random_batch(seed: int, num_samples: int = 12, *, longest: int = 12) -> Batch:
    """Random tokens, log-probabilities and rewards; samples of very different lengths."""
    rng = np.random.default_rng(seed)
    prompt_lengths = rng.integers(1, longest + 1, num_samples).astype(np.int32)
    response_lengths = rng.integers(1, longest + 1, num_samples).astype(np.int32)
    num_response_tokens = int(response_lengths.sum())
    num_tokens = num_response_tokens + int(prompt_lengths.sum())
    log_probs = -rng.uniform(0.5, 6.0, num_response_tokens).astype(np.float32)
    return Batch(
        sample_ids=tuple(f"{seed}-{index}" for index in range(num_samples)),
        group_ids=tuple(f"{seed}:{index // 4}" for index in range(num_samples)),
        prompt_lengths=prompt_lengths,
        response_lengths=response_lengths,
        token_ids=rng.integers(0, VOCABULARY, num_tokens).astype(np.int32),
        loss_mask=np.ones(num_response_tokens, dtype=bool),
        log_probs=log_probs,
        behaviour_log_probs=log_probs,
        weight_versions=np.zeros(num_response_tokens, dtype=np.int32),
        rewards=rng.normal(size=num_samples).astype(np.float32),
        finish_reasons=("stop",) * num_samples,
    )
