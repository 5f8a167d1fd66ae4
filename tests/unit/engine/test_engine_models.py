"""What is read from a model folder, and what is refused, by name and without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_builders import build_model, save_model

from rlserve.engine.models import check_supported, read_model_spec
from rlserve.engine.models.rope import inverse_frequencies
from rlserve.errors import ModelError


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
            "'GPT2LMHeadModel' is not supported; supported: LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM",
        ),
        ({"architectures": None}, "architecture none is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported, only 'silu'"),
        (
            {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True},
            "use_sliding_window=True is not supported",
        ),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope type 'yarn' is not supported"),
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


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_rotary_frequencies_equal_those_of_transformers(family: str, tmp_path: Path) -> None:
    model = build_model(family)
    spec = read_model_spec(save_model(tmp_path, family))
    assert torch.allclose(inverse_frequencies(spec), model.model.rotary_emb.inv_freq, rtol=1e-6, atol=0)


def test_the_check_imports_no_torch(folder: Path) -> None:
    code = (
        "import sys; from rlserve.engine.models import check_supported; check_supported(sys.argv[1]);"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, timeout=60)
