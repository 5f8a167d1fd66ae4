"""What is read from a model folder, and what is refused, by name and without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_builders import build_model, make_engine, save_model

from rlserve.engine.models import check_supported, read_model_spec
from rlserve.engine.models.base import YarnScaling
from rlserve.engine.models.rope import inverse_frequencies, local_rotation_table, rotation_table
from rlserve.errors import ModelError

ARCHITECTURES = {
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model", "llama")


def _change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_folder_that_is_none_or_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        check_supported(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"has no config\.json"):
        check_supported(tmp_path)
    (tmp_path / "config.json").write_text("{broken")
    with pytest.raises(ModelError, match="not valid JSON"):
        check_supported(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="must hold a JSON object"):
        check_supported(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["GPT2LMHeadModel"]},
            "'GPT2LMHeadModel' is not supported; supported: LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, "
            "MistralForCausalLM, Gemma2ForCausalLM, Gemma3ForCausalLM, Qwen3MoeForCausalLM",
        ),
        ({"architectures": None}, "architecture none is not supported"),
        ({"hidden_act": "relu2"}, "hidden_act='relu2' is not supported, only 'silu', 'swish', 'gelu'"),
        ({"hidden_act": ["silu"]}, "hidden_act=['silu'] is not supported"),
        (
            {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True, "layer_types": ["full_attention"]},
            "layer_types has 1 entries for 2 layers",
        ),
        (
            {"architectures": ["Gemma2ForCausalLM"], "layer_types": ["full_attention", "linear_attention"]},
            "layer_types has 'linear_attention', which is not supported",
        ),
        ({"architectures": ["Gemma2ForCausalLM"], "layer_types": "full"}, "layer_types must be a list of strings"),
        (
            {"architectures": ["Gemma3ForCausalLM"], "use_bidirectional_attention": True},
            "use_bidirectional_attention=True is not supported",
        ),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 0}, "sliding_window must be a whole number"),
        (
            {"architectures": ["Qwen3MoeForCausalLM"], "num_experts": 4, "num_experts_per_tok": 5},
            "num_experts_per_tok=5 is more than 4 experts",
        ),
        ({"architectures": ["Qwen3MoeForCausalLM"], "mlp_only_layers": [-1]}, "must be a list of whole numbers"),
        ({"rope_parameters": {"rope_type": "proportional"}}, "rope type 'proportional' is not supported"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "short_factor must be a list of numbers, got None"),
        (
            {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
            "short_factor must have a number for each of the 6 frequencies, got 1",
        ),
        (
            {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [0.0]}},
            "long_factor must be a number greater than 0, got 0.0",
        ),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "factor must be a number greater than 0"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}},
            "partial_rotary_factor=0.5 is not supported with rope type 'linear'",
        ),
        ({"rope_parameters": 3}, "rope_parameters must be a table"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
            "rope_parameters of full_attention is not supported",
        ),
        ({"rope_scaling": {"rope_type": "default", "type": "yarn"}}, "rope_type is 'default' and type is 'yarn'"),
        ({"model_type": "mistral"}, "model_type='mistral' is not supported, only 'llama'"),
        (
            {"quantization_config": {"quant_method": "fp8"}},
            "quantization_config={'quant_method': 'fp8'} is not supported",
        ),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "factor must be a number greater than 0"),
        ({"num_key_value_heads": 3}, "do not divide"),
        ({"vocab_size": "many"}, "vocab_size must be a whole number"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
        ({"eos_token_id": "end"}, "eos_token_id must be a token id"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_config_that_the_engine_cannot_run_is_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    _change_config(folder, **changes)
    with pytest.raises(ModelError) as caught:
        check_supported(folder)
    assert message in str(caught.value)
    assert "config.json" in str(caught.value)


def test_the_keys_of_older_folders_are_understood(folder: Path) -> None:
    new = read_model_spec(folder)
    path = folder / "config.json"
    content = json.loads(path.read_text())
    rope = content.pop("rope_parameters")
    content["rope_theta"] = rope.pop("rope_theta")
    content["rope_scaling"] = rope
    path.write_text(json.dumps(content))
    assert read_model_spec(folder) == new


ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
    "yarn with ramp unrounded": {"factor": 4.0, "original_max_position_embeddings": 48, "truncate": False},
    "yarn with own bounds": {"factor": 2.0, "beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.5},
    "yarn with scales": {"factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0.7},
    "default in part, which is passed over": {"partial_rotary_factor": 0.5},
    "longrope": {
        "short_factor": [1.0 + 0.1 * place for place in range(16)],
        "long_factor": [2.0 + 0.7 * place for place in range(16)],
        "original_max_position_embeddings": 64,
    },
    "longrope within its length": {
        "short_factor": [1.0 + 0.1 * place for place in range(16)],
        "long_factor": [9.0] * 16,
        "factor": 3.0,
    },
}


@pytest.mark.parametrize("name", ROPES)
def test_rotary_tables_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    rope = {"rope_type": name.split()[0], "rope_theta": 500.0, **ROPES[name]}
    model = build_model("llama", rope_parameters=rope, head_dim=32)
    spec = read_model_spec(save_model(tmp_path, "llama", rope_parameters=rope, head_dim=32))
    cosines, sines = model.model.rotary_emb(torch.zeros(1), torch.arange(256)[None])
    expected = torch.stack([cosines[0, :, :16], sines[0, :, :16]], dim=1)
    assert torch.equal(inverse_frequencies(spec, 256), model.model.rotary_emb.inv_freq)
    assert torch.allclose(rotation_table(spec, 256), expected, atol=2e-5)


def test_a_position_has_the_same_bits_in_a_table_of_any_length(folder: Path) -> None:
    spec = read_model_spec(folder)
    longest = rotation_table(spec, 1000)
    assert all(torch.equal(rotation_table(spec, length), longest[:length]) for length in (1, 2, 7, 16, 33, 100, 999))


def test_both_rotary_tables_of_gemma3_equal_those_of_transformers(tmp_path: Path) -> None:
    ropes = {
        "full_attention": {"rope_type": "linear", "rope_theta": 3e4, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 700.0},
    }
    model = build_model("gemma3", rope_parameters=ropes)
    spec = read_model_spec(save_model(tmp_path, "gemma3", rope_parameters=ropes))
    local = local_rotation_table(spec, 256)
    assert local is not None
    for kind, table in (("full_attention", rotation_table(spec, 256)), ("sliding_attention", local)):
        cosines, sines = model.model.rotary_emb(torch.zeros(1), torch.arange(256)[None], kind)
        expected = torch.stack([cosines[0, :, :10], sines[0, :, :10]], dim=1)
        assert torch.allclose(table, expected, atol=2e-5)


def test_the_keys_of_older_gemma3_folders_are_understood(tmp_path: Path) -> None:
    folder = save_model(tmp_path, "gemma3", num_hidden_layers=6, layer_types=None)
    new = read_model_spec(folder)
    path = folder / "config.json"
    content = json.loads(path.read_text())
    for key in ("rope_parameters", "layer_types", "_sliding_window_pattern"):
        del content[key]
    content |= {"rope_theta": 1e6, "rope_local_base_freq": 10_000.0, "sliding_window_pattern": 6}
    path.write_text(json.dumps(content))
    assert read_model_spec(folder) == new
    assert new.layer_windows == (9, 9, 9, 9, 9, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 8.0}},
            "rope_parameters must hold a table for full_attent",
        ),
        ({"rope_parameters": {"full_attention": 8.0}}, "full_attention of rope_parameters must be a table, got 8.0"),
        (
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 8.0}}},
            "rope type 'linear' of sliding_attention is not supported",
        ),
        (
            {"rope_scaling": {"type": "linear", "factor": 8.0}, "rope_parameters": None},
            "'default' and type is 'linear'",
        ),
    ],
)
def test_rotary_positions_of_gemma3_that_are_not_computed_are_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = save_model(tmp_path, "gemma3")
    _change_config(folder, **changes)
    with pytest.raises(ModelError) as caught:
        check_supported(folder)
    assert message in str(caught.value)


def test_what_is_said_twice_counts_as_in_transformers(folder: Path) -> None:
    _change_config(
        folder,
        rope_scaling={"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32, "truncate": None},
        original_max_position_embeddings=64,
    )
    spec = read_model_spec(folder)
    assert isinstance(spec.rope_scaling, YarnScaling)
    assert spec.rope_scaling.original_max_position == 64
    assert not spec.rope_scaling.truncate
    assert spec.rope_theta == 10_000.0


@pytest.mark.parametrize(("family", "expected"), [("llama", (2,)), ("mistral", (2,)), ("gemma3", (1,))])
def test_the_token_that_ends_samples_is_as_in_transformers_where_no_file_says(
    family: str, expected: tuple[int, ...], tmp_path: Path
) -> None:
    folder = save_model(tmp_path, family)
    assert read_model_spec(folder).eos_token_ids == ()
    content = json.loads((folder / "config.json").read_text())
    del content["eos_token_id"]
    (folder / "config.json").write_text(json.dumps(content))
    assert read_model_spec(folder).eos_token_ids == expected


def test_heads_of_a_mixture_have_no_size_of_their_own_unless_the_file_says(tmp_path: Path) -> None:
    folder = save_model(tmp_path, "qwen3_moe", head_dim=12)
    _change_config(folder, head_dim=None)
    assert read_model_spec(folder).head_dim == 48 // 4


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3", "qwen3_moe", "gemma2", "gemma3"])
def test_what_a_file_does_not_say_is_as_in_transformers(family: str, tmp_path: Path) -> None:
    """A file with the shape alone, against one that transformers wrote with all of its own defaults."""
    config = type(build_model(family).config)()
    path = tmp_path / "config.json"
    full = config.to_dict() | {"architectures": [ARCHITECTURES[family]]}
    path.write_text(json.dumps(full))
    expected = read_model_spec(tmp_path)
    needed = ("architectures", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    path.write_text(json.dumps({key: full[key] for key in (*needed, "num_attention_heads", "head_dim") if key in full}))
    found = read_model_spec(tmp_path)
    assert replace(found, eos_token_ids=()) == replace(expected, eos_token_ids=())


def test_the_check_imports_no_torch(folder: Path) -> None:
    code = (
        "import sys; from rlserve.engine.models import check_supported; check_supported(sys.argv[1]);"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, timeout=60)


@pytest.mark.parametrize("max_shard_size", ["1GB", "40KB"])
def test_a_head_of_its_own_that_the_file_ties_is_refused(max_shard_size: str, tmp_path: Path) -> None:
    model = build_model("qwen3", tie_word_embeddings=False)
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (max_shard_size == "40KB")
    _change_config(tmp_path, tie_word_embeddings=True)
    with pytest.raises(ModelError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        make_engine(tmp_path)

    with torch.no_grad():
        model.lm_head.weight.copy_(model.model.embed_tokens.weight)
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    _change_config(tmp_path, tie_word_embeddings=True)
    assert make_engine(tmp_path).spec.tied_embeddings
