"""Write a small model with random weights as a Hugging Face folder, with a tokenizer of one token per character.

Stands in for a model of your own: everything that rlserve needs of a model is in such a folder. It knows nothing, so
a run on it shows only that all parts fit together.
"""

from __future__ import annotations

import argparse
import string
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from rlserve.tasks.character_tokenizer import character_tokenizer

FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}


def make_model(folder: Path, family: str, seed: int) -> None:
    """Write ``config.json``, ``model.safetensors`` and the tokenizer's files into ``folder``."""
    torch.manual_seed(seed)
    tokenizer = character_tokenizer(string.digits + string.ascii_letters + "+-*/=;.,!? \n")
    config_class, model_class = FAMILIES[family]
    config = config_class(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model_class(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--family", choices=sorted(FAMILIES), default="qwen3")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    make_model(arguments.folder, arguments.family, arguments.seed)
    print(f"a {arguments.family} model in {arguments.folder}")


if __name__ == "__main__":
    main()
