"""Sizes by name, and by a model's own configuration."""

from __future__ import annotations

from typing import Any

import pytest

from rlserve.errors import UserError
from rlserve.roofline.model_shapes import MODEL_SHAPES, model_shape, shape_of_config

QWEN3_8B: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "tie_word_embeddings": False,
}


def test_the_8b_of_the_catalogue_is_that_of_its_configuration() -> None:
    named, read = model_shape("8B"), shape_of_config("Qwen3-8B", QWEN3_8B)
    assert read.num_parameters == pytest.approx(named.num_parameters, rel=0.001)
    assert read.kv_bytes_per_token == named.kv_bytes_per_token == 2 * 36 * 8 * 128 * 2
    assert named.weight_bytes == 2 * named.num_parameters


def test_a_tied_head_counts_once() -> None:
    tied = shape_of_config("tied", {**QWEN3_8B, "tie_word_embeddings": True})
    untied = shape_of_config("untied", QWEN3_8B)
    assert untied.num_parameters - tied.num_parameters == 151936 * 4096


def test_what_a_configuration_leaves_out_follows_from_the_rest() -> None:
    config = {key: value for key, value in QWEN3_8B.items() if key not in ("num_key_value_heads", "head_dim")}
    shape = shape_of_config("older", config)
    assert (shape.num_kv_heads, shape.head_dim) == (32, 128)


def test_a_wrong_name_and_a_shape_that_is_not_modelled_are_refused() -> None:
    with pytest.raises(UserError, match="no model size is called '9B'"):
        model_shape("9B")
    with pytest.raises(UserError, match="mixture of experts"):
        shape_of_config("moe", {**QWEN3_8B, "num_experts": 128})
    with pytest.raises(UserError, match="no vocab_size"):
        shape_of_config("cut", {key: value for key, value in QWEN3_8B.items() if key != "vocab_size"})


def test_larger_names_are_larger_models() -> None:
    sizes = [shape.num_parameters for shape in MODEL_SHAPES.values()]
    assert sizes == sorted(sizes)
