"""Whether model, tokenizer, KV cache and data fit each other, found before anything is started."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from rlserve.config.tree import ModelConfig, RunConfig
from rlserve.controller.preparation.preview import preview_prompts
from rlserve.controller.preparation.prompts import PreparedPrompts, prepare_prompts
from rlserve.engine.attention.factory import attention_class
from rlserve.engine.config import EngineConfig
from rlserve.engine.kv_cache.capacity import num_cache_tokens, token_bytes
from rlserve.engine.models.factory import read_model_spec
from rlserve.errors import ConfigurationError, ModelError, RewardError
from rlserve.pool.config import PoolConfig, SlotGroupConfig
from rlserve.rollout.config import DataConfig, RewardConfig, RolloutConfig
from rlserve.rollout.groups import PromptGroup
from rlserve.rollout.rewards.base import Score
from rlserve.tasks.character_tokenizer import character_tokenizer

TEMPLATE = "{% for message in messages %}<{{ message.role }}>{{ message.content }}</turn>{% endfor %}<assistant>"
MAX_LENGTH = 128


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small model with a chat template."""
    folder = tmp_path / "model"
    tokenizer = character_tokenizer("0123456789+= abcdefghijklmnopqrstuvwxyz<>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["</turn>"]})
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=MAX_LENGTH,
        eos_token_id=tokenizer.eos_token_id,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


def run_config(model: Path, *, rollout: dict[str, Any] | None = None, **data: Any) -> RunConfig:
    path = model.parent / "data.jsonl"
    path.write_text("".join(f'{{"prompt": "{"1" * length}=", "answer": {length}}}\n' for length in range(1, 31)))
    return RunConfig(
        model=ModelConfig(path=str(model)),
        data=DataConfig(path=str(path), **data),
        reward=RewardConfig(function="builtins:len"),
        rollout=RolloutConfig(**({"max_tokens": 32} | (rollout or {}))),
        pool=PoolConfig(slots=(SlotGroupConfig(type="cpu-a", count=2),)),
    )


def prepare(config: RunConfig) -> PreparedPrompts:
    return prepare_prompts(config, config.model.path)


def test_lengths_and_end_tokens_are_found(model: Path) -> None:
    found = prepare(run_config(model, apply_chat_template=True))
    turn = found.tokenizer.convert_tokens_to_ids("</turn>")
    assert found.end_tokens.added == (turn,)
    assert found.num_request_tokens == len(found.prompts.longest.prompt_token_ids) + 32
    assert len(found.prompts.longest.prompt_token_ids) == len("<user>") + 31 + 1 + len("<assistant>")


def test_an_answer_that_leaves_no_room_for_a_prompt_is_refused(model: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"rollout\.max_tokens: leaves no room .* takes 128 tokens, got 128"):
        prepare(run_config(model, rollout={"max_tokens": MAX_LENGTH}))
    with pytest.raises(ConfigurationError, match="takes 40 tokens"):
        prepare(run_config(model, rollout={"max_tokens": 40, "engine": EngineConfig(max_model_len=40)}))


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (
            EngineConfig(num_blocks=3),
            r"rollout\.engine\.num_blocks: the KV cache holds 48 tokens, .* take 63 .* least 4",
        ),
        (
            EngineConfig(kv_cache_bytes=1 << 13, dtype="float32"),
            r"rollout\.engine\.kv_cache_bytes: the KV cache holds 16 tokens, .*least 32768",
        ),
    ],
)
def test_a_cache_that_would_cut_answers_is_refused_and_the_advice_is_good(
    model: Path, engine: EngineConfig, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message) as refused:
        prepare(run_config(model, rollout={"engine": engine}))
    (problem,) = refused.value.problems
    key, least = problem.key.rpartition(".")[2], int(problem.message.split("at least ")[1].split()[0])
    better = EngineConfig(**({"dtype": engine.dtype} | {key: least}))
    assert prepare(run_config(model, rollout={"engine": better})).num_cache_tokens == 64


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kv_cache_dtype", ["auto", "int8"])
@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_the_size_of_a_token_is_that_of_the_backends(
    model: Path, dtype: Any, kv_cache_dtype: Any, backend: Any
) -> None:
    config, spec = EngineConfig(dtype=dtype, kv_cache_dtype=kv_cache_dtype), read_model_spec(model)
    block_bytes = attention_class(backend, kv_cache_dtype).block_bytes(spec, 16, getattr(torch, dtype))
    assert token_bytes(config, spec) * 16 == block_bytes


def test_on_a_gpu_the_memory_decides(model: Path) -> None:
    spec = read_model_spec(model)
    assert num_cache_tokens(EngineConfig(), spec, on_cpu=False) is None
    assert num_cache_tokens(EngineConfig(num_blocks=3), spec, on_cpu=False) == 48
    assert num_cache_tokens(EngineConfig(), spec, on_cpu=True) == 256 * 2**20 // token_bytes(EngineConfig(), spec)


def tried(held_out: Sequence[PromptGroup], tokenizer: object) -> Score:
    assert len(held_out) == 3
    return Score(value=0.5)


def untried(held_out: Sequence[PromptGroup], tokenizer: object) -> None:
    raise AssertionError("there is nothing to try it on")


def test_a_dry_run_shows_what_the_model_reads(model: Path) -> None:
    shown = preview_prompts(run_config(model, apply_chat_template=True, system_prompt="add\nup"), tried).splitlines()
    assert shown[0] == "prompts: 27 to train on, 3 held out"
    assert shown[1].startswith("longest: ")
    assert shown[1].endswith("tokens; the model takes 128, the KV cache holds 1,048,576")
    assert shown[2].startswith("answers end at: '<eos>' (")
    assert "'</turn>' (" in shown[2]
    assert shown[3].startswith("one prompt as the model reads it (")
    assert shown[4:6] == ["  <system>add", f"  up</turn><user>{shown[5].partition('<user>')[2]}"]
    assert shown[6].startswith('its reference answer: "')
    assert shown[7] == "the reward of a reference answer: 0.5"


def test_a_dry_run_looks_into_the_weights(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        preview_prompts(run_config(model), untried)
    weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ModelError, match="is a Git LFS pointer"):
        preview_prompts(run_config(model), untried)


def test_a_dry_run_looks_at_a_reward_model(model: Path) -> None:
    config = replace(run_config(model), reward=RewardConfig(model_path=str(model)))
    with pytest.raises(RewardError, match="must have one label, but has 2"):
        preview_prompts(config, untried)


def test_a_dry_run_makes_and_fetches_nothing(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLSERVE_CACHE", str(model.parent / "empty"))
    config = run_config(model)
    for path, what in (("builtin:addition", "makes builtin:addition"), ("org/model", "fetches org/model")):
        hub = RunConfig(model=ModelConfig(path=path), data=config.data, reward=config.reward)
        assert preview_prompts(hub, untried) == f"prompts: looked at when the run starts, which {what}"
    hub = RunConfig(model=config.model, data=DataConfig(path="org/data"), reward=config.reward)
    assert preview_prompts(hub, untried) == "prompts: looked at when the run starts, which fetches org/data"
