"""Random ``config.json`` files, as transformers of several ages wrote them and as hands did: the engine computes what
transformers makes of the same file."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_builders import make_engine, make_request, run
from transformers import AutoConfig, AutoModelForCausalLM

from rlserve.engine.models.base import LongRopeScaling
from rlserve.engine.models.factory import read_model_spec

FAMILIES = {
    "llama": ("LlamaForCausalLM", "llama"),
    "mistral": ("MistralForCausalLM", "mistral"),
    "qwen2": ("Qwen2ForCausalLM", "qwen2"),
    "qwen3": ("Qwen3ForCausalLM", "qwen3"),
    "qwen3_moe": ("Qwen3MoeForCausalLM", "qwen3_moe"),
    "gemma2": ("Gemma2ForCausalLM", "gemma2"),
    "gemma3": ("Gemma3ForCausalLM", "gemma3_text"),
}
QWEN, GEMMA = ("qwen2", "qwen3", "qwen3_moe"), ("gemma2", "gemma3")
NUM_FILES = 9
LENGTH = 96


class FileWriter:
    """Draws files of one family; each key is there or not."""

    def __init__(self, family: str, rng: random.Random) -> None:
        self.family = family
        self.rng = rng
        self.content: dict[str, Any] = {}

    def maybe(self, table: dict[str, Any], key: str, values: Sequence[Any], share: float = 0.5) -> None:
        if self.rng.random() < share:
            table[key] = self.rng.choice(values)

    def draw(self) -> dict[str, Any]:
        architecture, model_type = FAMILIES[self.family]
        special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
        self.content = {"architectures": [architecture], "model_type": model_type, **special}
        self._shape()
        self._ropes()
        self._windows()
        names = ["gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_python", "silu", "swish"]
        self.maybe(self.content, "hidden_activation" if self.family in GEMMA else "hidden_act", names)
        if self.family in GEMMA:
            self._gemma()
        if self.family == "qwen3_moe":
            self._experts()
        return self.content

    def _shape(self) -> None:
        rng, num_kv_heads = self.rng, self.rng.choice([1, 1, 2, 3])
        num_heads = num_kv_heads * (rng.randint(1, 8) if num_kv_heads == 1 else rng.randint(1, 3))
        head_dim = rng.choice([16, 18, 20, 32, 48, 64, 80, 112, 128, 256])
        hidden = rng.choice([37, 48, 100]) if self.family in QWEN else num_heads * rng.choice([8, 12, 16])
        self.content |= {
            "vocab_size": rng.choice([11, 97, 128, 255]),
            "hidden_size": hidden,
            "intermediate_size": rng.choice([16, 33, 64, 130]),
            "num_hidden_layers": rng.randint(1, 4),
            "num_attention_heads": num_heads,
            "num_key_value_heads": num_kv_heads,
            "head_dim": head_dim,
            "max_position_embeddings": LENGTH,
        }
        if self.family == "llama" and rng.random() < 0.3:
            del self.content["head_dim"]
        if self.family in ("llama", "qwen2", "qwen3") and rng.random() < 0.3:
            self.content["num_key_value_heads"] = None
        self.maybe(self.content, "rms_norm_eps", [1e-5, 1e-6, 1e-3])
        for key in ("tie_word_embeddings", "attention_bias", "mlp_bias"):
            self.maybe(self.content, key, [True, False])

    def _rope(self) -> dict[str, Any]:
        kind = self.rng.choice(["default", "linear", "dynamic", "llama3", "yarn", "yarn", "longrope"])
        rope: dict[str, Any] = {} if kind == "default" else {"factor": self.rng.choice([1, 2.5, 4.0, 8])}
        if kind == "llama3":
            rope |= {"low_freq_factor": 1.0, "high_freq_factor": self.rng.choice([2, 4.0])}
        if kind in ("llama3", "yarn"):
            self.maybe(rope, "original_max_position_embeddings", [32, 64])
        if kind == "yarn":
            self.maybe(rope, "factor", [None], 0.1)
            self.maybe(rope, "attention_factor", [1.3, None], 0.3)
            self.maybe(rope, "beta_fast", [16.0, 64, None, 0], 0.4)
            self.maybe(rope, "beta_slow", [2.0, None], 0.4)
            self.maybe(rope, "mscale", [1.0, 0], 0.4)
            self.maybe(rope, "mscale_all_dim", [0.5, 0], 0.4)
            self.maybe(rope, "truncate", [True, False, None], 0.4)
        if kind == "longrope":
            self._long_rope(rope)
        if kind == "default":  # without a meaning for these architectures, in transformers too
            self.maybe(rope, "partial_rotary_factor", [0.5, 1.0], 0.3)
        rope["rope_type"] = kind
        return rope

    def _long_rope(self, rope: dict[str, Any]) -> None:
        content = self.content
        head_dim = content.get("head_dim", content["hidden_size"] // content["num_attention_heads"])
        for key, longest in (("short_factor", 2.0), ("long_factor", 8.0)):
            rope[key] = [round(self.rng.uniform(1.0, longest), 3) for _ in range(head_dim // 2)]
        self.maybe(rope, "original_max_position_embeddings", [32, 64, LENGTH], 0.8)
        self.maybe(rope, "factor", [None], 0.3)
        self.maybe(rope, "attention_factor", [1.3, None], 0.3)

    def _ropes(self) -> None:
        style = self.rng.choice(["none", "old", "new", "both"])
        thetas = [50.0, 10_000, 1e6]
        if style in ("old", "both"):
            self.content["torch_dtype"] = "bfloat16"
            self.content["rope_scaling"] = self.rng.choice([self._rope(), self._rope(), None])
            self.content["rope_theta"] = self.rng.choice(thetas)
            self.maybe(self.content, "original_max_position_embeddings", [40], 0.2)
            if self.content["rope_scaling"] and self.family != "gemma3" and self.rng.random() < 0.5:
                self.content["rope_scaling"]["type"] = self.content["rope_scaling"].pop("rope_type")
        if style == "old" and self.family == "gemma3":
            self.maybe(self.content, "rope_local_base_freq", [300.0])
        if style in ("new", "both"):
            rope, local = self._rope(), {"rope_type": "default"}
            self.maybe(rope, "rope_theta", thetas)
            self.maybe(local, "rope_theta", [300.0])
            tables = {"full_attention": rope, "sliding_attention": local}
            self.content["rope_parameters"] = tables if self.family == "gemma3" else rope

    def _windows(self) -> None:
        window = self.rng.choice([1, 2, 7, 20, 40])
        num_layers = self.content["num_hidden_layers"]
        types = self.rng.choices(["sliding_attention", "full_attention"], k=num_layers)
        if self.family in QWEN and self.rng.random() < 0.5:
            self.content |= {"use_sliding_window": True, "sliding_window": window}
            self.maybe(self.content, "max_window_layers", [0, 1, 28])
            self.maybe(self.content, "layer_types", [types, None])
        elif self.family in QWEN:
            self.maybe(self.content, "sliding_window", [window, None])
        elif self.family in GEMMA:
            self.content["sliding_window"] = window
            self.maybe(self.content, "layer_types", [types, None])
            self.maybe(self.content, "sliding_window_pattern", [1, 2, 3])
        elif self.family == "mistral":
            self.maybe(self.content, "sliding_window", [window], 0.8)
            self.maybe(self.content, "layer_types", [types], 0.3)

    def _gemma(self) -> None:
        self.maybe(self.content, "query_pre_attn_scalar", [17, 64], 0.8)
        self.maybe(self.content, "attn_logit_softcapping", [5.0, None] if self.family == "gemma2" else [None])
        self.maybe(self.content, "final_logit_softcapping", [3.0, None])

    def _experts(self) -> None:
        num_experts = self.rng.choice([1, 4, 5])
        self.content |= {
            self.rng.choice(["num_experts", "num_local_experts"]): num_experts,
            "num_experts_per_tok": self.rng.randint(1, min(num_experts, 3)),
            "moe_intermediate_size": self.rng.choice([8, 33]),
        }
        if "num_local_experts" in self.content:
            self.maybe(self.content, "num_experts", [num_experts + 1])
        self.maybe(self.content, "norm_topk_prob", [True, False])
        self.maybe(self.content, "decoder_sparse_step", [1, 2])
        self.maybe(self.content, "mlp_only_layers", [[], [0], [1], None])


def _model_of(folder: Path, rng: random.Random) -> Any:
    """What transformers makes of the file, with random weights that are written beside it."""
    content = (folder / "config.json").read_text()
    model = AutoModelForCausalLM.from_config(
        AutoConfig.from_pretrained(folder),
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
    ).eval()
    torch.manual_seed(rng.randrange(2**31))
    center = 0.0 if "Gemma" in content else 1.0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            if "norm" in name:
                parameter.copy_(center + 0.2 * noise)
            else:
                parameter.copy_(0.3 * noise if parameter.dim() == 1 else noise * parameter.shape[-1] ** -0.5)
    model.save_pretrained(folder)
    (folder / "config.json").write_text(content)
    return model


def _files(family: str) -> Iterator[tuple[dict[str, Any], random.Random]]:
    for number in range(NUM_FILES):
        rng = random.Random(f"{family} {number}")
        yield FileWriter(family, rng).draw(), rng


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_transformers_for_any_file(family: str, tmp_path: Path) -> None:
    for content, rng in _files(family):
        (tmp_path / "config.json").write_text(json.dumps(content))
        model = _model_of(tmp_path, rng)
        prompts = [
            rng.choices(range(content["vocab_size"]), k=length)
            for length in (1, 13, 70)
            if length >= _shortest(tmp_path)
        ]
        requests = [
            make_request(str(index), prompt, temperature=0.0, max_tokens=6) for index, prompt in enumerate(prompts)
        ]
        for backend in ("cpu", "torch"):
            outputs = run(make_engine(tmp_path, attention_backend=backend, max_num_batched_tokens=40), requests)
            for request in requests:
                (sample,) = outputs[request.id].samples
                expected = _log_probs(model, request.prompt_token_ids + sample.token_ids)[-1 - len(sample.token_ids) :]
                chosen = expected[:-1].gather(1, torch.tensor(sample.token_ids)[:, None]).squeeze(1)
                assert sample.log_probs == pytest.approx(chosen.tolist(), abs=1e-4), (backend, content)
                assert chosen.tolist() == pytest.approx(expected[:-1].amax(1).tolist(), abs=1e-4), (backend, content)


def _shortest(folder: Path) -> int:
    """Of the prompts that transformers rotates as the engine does. With ``longrope`` it changes the rotation of a whole
    sequence when that outgrows the original length; the engine goes by the longest sequence that it takes."""
    scaling = read_model_spec(folder).rope_scaling
    if isinstance(scaling, LongRopeScaling) and scaling.original_max_position < LENGTH:
        return scaling.original_max_position
    return 1


@pytest.mark.parametrize(("max_model_len", "prompt_length"), [(40, 20), (41, 38)])
def test_the_longest_sequence_decides_between_short_and_long_factors(
    tmp_path: Path, max_model_len: int, prompt_length: int
) -> None:
    rope = {
        "rope_type": "longrope",
        "original_max_position_embeddings": 40,
        "short_factor": [1.0 + 0.1 * place for place in range(8)],
        "long_factor": [2.0 + 0.7 * place for place in range(8)],
    }
    content = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": LENGTH,
        "rope_parameters": rope | {"rope_theta": 100.0},
    }
    (tmp_path / "config.json").write_text(json.dumps(content))
    model = _model_of(tmp_path, random.Random(1))
    request = make_request("0", range(prompt_length), temperature=0.0, max_tokens=3, ignore_eos=True)
    engine = make_engine(tmp_path, max_model_len=max_model_len)
    (sample,) = run(engine, [request])["0"].samples
    expected = _log_probs(model, request.prompt_token_ids + sample.token_ids)[prompt_length - 1 : -1]
    chosen = expected.gather(1, torch.tensor(sample.token_ids)[:, None]).squeeze(1)
    assert sample.log_probs == pytest.approx(chosen.tolist(), abs=1e-4)


def _log_probs(model: Any, token_ids: tuple[int, ...]) -> torch.Tensor:
    """[T, V]"""
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([token_ids])).logits[0]
    return logits.log_softmax(dim=-1)
