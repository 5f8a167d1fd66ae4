"""Tiny models with random weights, as Hugging Face folders, and prompts for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from trainer_samples import random_batch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from rlserve.tasks.character_tokenizer import character_tokenizer
from rlserve.trainers import GRPOConfig, LoraConfig, TorchTrainerConfig, create_trainer

ALPHABET = "0123456789+-= abcdefghijklmnopqrstuvwxyz"
_CONFIGS: dict[str, Any] = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}


def write_model(folder: Path, family: str = "qwen3", seed: int = 0) -> Path:
    """A model of two layers with its character tokenizer; answers are random and mostly run to their length."""
    tokenizer = character_tokenizer(ALPHABET)
    torch.manual_seed(seed)
    config = _CONFIGS[family](
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_adapters(folder: Path, base: Path) -> Path:
    """Adapters of a model of ``write_model``, as a checkpoint of a run has them: trained for one step."""
    trainer = create_trainer(
        TorchTrainerConfig(learning_rate=0.05, lora=LoraConfig(rank=2)), GRPOConfig(), model_path=str(base), seed=0
    )
    trainer.step(random_batch(0))
    trainer.save_pretrained(folder)
    character_tokenizer(ALPHABET).save_pretrained(folder)
    return folder


def write_prompts(path: Path, number: int = 64) -> Path:
    """Sums as prompts with their answers."""
    records = ({"prompt": f"{left}+{left % 7}=", "answer": str(left + left % 7)} for left in range(number))
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path
