"""LoRA adapters of a model over two ranks; peft's merged models are the oracle, as with one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from adapter_builders import adapter_requests, assert_greedy, merged_model, save_adapter
from engine_builders import SETTINGS, build_model, engine_over_two_ranks, make_request, run, save_model, weights_of
from test_engine_parallel_ranks import CONFIG, RecordingGroup

from rlserve.engine import Engine, EngineConfig
from rlserve.errors import ModelError

ATTENTION = ["q_proj", "v_proj", "o_proj"]
FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("qwen3", {}),
    ("gemma2", {}),
    ("qwen3_moe", {"target_modules": ATTENTION}),
]


@pytest.mark.parametrize(("family", "changes"), FAMILIES, ids=[family for family, _ in FAMILIES])
def test_two_ranks_compute_the_models_that_peft_merges(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", family)
    first = save_adapter(tmp_path / "first", family, **changes)
    changes = {"r": 8, "use_rslora": True, "target_modules": ["k_proj", "down_proj"]} | changes
    second = save_adapter(tmp_path / "second", family, seed=2, **changes)
    requests = adapter_requests()
    with engine_over_two_ranks(folder, num_blocks=22, max_num_batched_tokens=40, max_num_sequences=14) as engine:
        engine.load_adapter("first", first)
        engine.load_adapter("second", second)
        outputs = run(engine, requests)
        assert engine.stats().num_preemptions > 0

    models = {None: build_model(family), "first": merged_model(first, family), "second": merged_model(second, family)}
    for request in requests:
        assert_greedy(outputs[request.id], request, models[request.adapter])


def test_the_other_rank_is_a_process(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", "qwen2")  # whose heads of keys both ranks share
    first = save_adapter(tmp_path / "first", "qwen2")
    engine = Engine(folder, EngineConfig(**(SETTINGS | {"tensor_parallel_size": 2})))
    try:
        engine.load_adapter("first", first)
        requests = [request for request in adapter_requests() if request.adapter != "second"]
        outputs = run(engine, requests)
    finally:
        engine.close()
    for request in requests:
        model = build_model("qwen2") if request.adapter is None else merged_model(first, "qwen2")
        assert_greedy(outputs[request.id], request, model)


def test_ranks_that_share_a_key_value_head(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", "qwen3", num_key_value_heads=1)
    adapted = build_model("qwen3", num_key_value_heads=1)
    from peft import LoraConfig, PeftModel, get_peft_model

    get_peft_model(
        adapted, LoraConfig(r=4, target_modules=["k_proj", "v_proj", "up_proj"], init_lora_weights=False)
    ).save_pretrained(str(tmp_path / "first"))
    request = replace(make_request("r", range(1, 10), temperature=0.0, max_tokens=12), adapter="first")
    with engine_over_two_ranks(folder) as engine:
        engine.load_adapter("first", tmp_path / "first")
        outputs = run(engine, [request])
    base = build_model("qwen3", num_key_value_heads=1)
    assert_greedy(outputs["r"], request, PeftModel.from_pretrained(base, str(tmp_path / "first")).merge_and_unload())


def test_an_adapter_that_is_refused_is_refused_by_all_and_they_go_on(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    first = save_adapter(tmp_path / "first")
    request = replace(make_request("r", range(1, 10), temperature=0.0, max_tokens=12), adapter="first")
    with engine_over_two_ranks(folder) as engine:
        with pytest.raises(ModelError, match="is no adapter"):
            engine.load_adapter("other", tmp_path / "nothing")
        engine.load_adapter("first", first)
        engine.load_weights(1, weights_of("qwen3", 8))
        outputs = run(engine, [request])
    other = build_model("qwen3", seed=8)
    from peft import PeftModel

    assert_greedy(outputs["r"], request, PeftModel.from_pretrained(other, str(first)).merge_and_unload())


def test_the_others_forget_an_adapter_when_its_last_request_has_ended(tmp_path: Path) -> None:
    group = RecordingGroup()
    engine = Engine(save_model(tmp_path / "model"), CONFIG, ranks=group)
    group.events.clear()
    engine.load_adapter("first", save_adapter(tmp_path / "first"))
    assert group.events == ["LOAD_ADAPTER", "broadcast", "broadcast"], "one a layer"
    request = replace(make_request("r", range(1, 6), max_tokens=3), adapter="first")
    engine.add(request)
    engine.step()
    engine.unload_adapter("first")
    while engine.has_work:
        engine.step()
    assert "FORGET_ADAPTERS" not in group.events
    engine.add(make_request("plain", range(1, 6), max_tokens=1))
    engine.step()
    assert group.events.count("FORGET_ADAPTERS") == 1
    engine.close()
