"""A tiny random model whose tokenizer knows JSON: bytes, and pairs of them as JSON has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine_builders import make_request, save_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rlserve.engine import Request, StructuredOutput
from rlserve.engine.requests.structured_output import StructuredOutputKind

EOS, SECOND_EOS = 0, 1
VOCAB_SIZE = 384
"""Of the model; some of its last tokens are unknown to the tokenizer."""
PROMPT = (40, 41, 42)
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
    shape = {"vocab_size": VOCAB_SIZE, "max_position_embeddings": 1024, "initializer_range": 0.1}
    save_model(folder, "qwen3", **(shape | {"eos_token_id": [EOS, SECOND_EOS]} | changes))
    json_tokenizer().save_pretrained(folder)
    return folder


def structured(request_id: str, kind: StructuredOutputKind, text: str = "", **sampling: Any) -> Request:
    """A request for an answer in some form."""
    wanted = StructuredOutput(kind=kind, text=text)
    return make_request(request_id, PROMPT, **({"max_tokens": 60, "structured_output": wanted} | sampling))
