"""A tiny random model whose tokenizer knows JSON: bytes, and pairs of them as JSON has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

EOS, SECOND_EOS = 0, 1
VOCAB_SIZE = 384
"""Of the model; some of its last tokens are unknown to the tokenizer."""
_TEXT = '{"name": "abc", "value": 12.5, "items": [1, 2, 3], "ok": true, "none": null, "no": false}\n'


def json_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of about 320 tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 8,
        special_tokens=["<|end|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_TEXT] * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


def save_json_model(folder: Path, **changes: Any) -> Path:
    """The model and its tokenizer; two tokens end a sequence."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 48,
        "intermediate_size": 72,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 20,
        "max_position_embeddings": 1024,
        "initializer_range": 0.1,
        "bos_token_id": None,
        "eos_token_id": [EOS, SECOND_EOS],
    }
    AutoModelForCausalLM.from_config(Qwen3Config(**(shape | changes))).save_pretrained(folder)
    json_tokenizer().save_pretrained(folder)
    return folder
