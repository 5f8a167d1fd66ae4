"""Random-weight models of the Qwen3 architecture, as Hugging Face folders that every peer reads."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

DEFAULT_CACHE = Path.home() / ".cache" / "rlserve" / "benchmarks"
WEIGHTS_SEED = 0
MAX_POSITION = 4096


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Sizes of a decoder; the head is tied to the embedding."""

    name: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def num_parameters(self) -> int:
        """Weights of the model, norms included."""
        query, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention = self.hidden_size * (2 * query + 2 * kv) + 2 * self.head_dim
        layer = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        return self.vocab_size * self.hidden_size + self.num_layers * layer + self.hidden_size


_SHAPES = (
    ModelShape(
        name="tiny",
        vocab_size=128,
        hidden_size=64,
        intermediate_size=128,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=32,
    ),
    ModelShape(  # that of the default run
        name="default",
        vocab_size=17,
        hidden_size=128,
        intermediate_size=256,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
    ),
    ModelShape(
        name="6m",
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=768,
        num_layers=6,
        num_heads=4,
        num_kv_heads=2,
        head_dim=64,
    ),
    ModelShape(
        name="75m",
        vocab_size=24576,
        hidden_size=640,
        intermediate_size=1920,
        num_layers=12,
        num_heads=10,
        num_kv_heads=5,
        head_dim=64,
    ),
    ModelShape(  # Qwen3-0.6B
        name="596m",
        vocab_size=151936,
        hidden_size=1024,
        intermediate_size=3072,
        num_layers=28,
        num_heads=16,
        num_kv_heads=8,
        head_dim=128,
    ),
)
SHAPES = {shape.name: shape for shape in _SHAPES}


def model_folder(shape: ModelShape, cache: Path) -> Path:
    """The folder of the model, written on first use. The weights are stored in bfloat16 and are the same for the
    float32 cases."""
    folder = cache / f"qwen3-{shape.name}"
    if not folder.is_dir():
        unfinished = cache / f".{folder.name}-{os.getpid()}"
        _write(shape, unfinished)
        unfinished.rename(folder)
    return folder


def _write(shape: ModelShape, folder: Path) -> None:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(WEIGHTS_SEED)
    config = Qwen3Config(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=MAX_POSITION,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    model = Qwen3ForCausalLM(config).to(torch.bfloat16)
    assert model.num_parameters() == shape.num_parameters
    model.save_pretrained(folder)
