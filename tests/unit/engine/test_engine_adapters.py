"""LoRA adapters beside the model: peft, which merges them, is the oracle."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_builders import NAMES, adapter_requests, assert_greedy, merged_model, save_adapter
from engine_builders import build_model, make_engine, make_request, run, save_model
from hypothesis import given, settings
from hypothesis import strategies as st
from instruction_sets import OLDER, instructions_up_to, only_on_x86

from rlserve.engine.decoder.cpu_program import CpuProgram
from rlserve.engine.kv_cache.prefix import root_hash
from rlserve.errors import ModelError, UserError


@pytest.mark.parametrize("overlaps", [False, True], ids=["plain", "overlapped"], indirect=True)
@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_two_adapters_and_the_model_in_one_batch_are_the_models_that_peft_merges(
    family: str, backend: str, tmp_path: Path
) -> None:
    save_model(tmp_path / "model", family)
    first = save_adapter(tmp_path / "first", family)
    second = save_adapter(
        tmp_path / "second", family, seed=2, r=8, use_rslora=True, target_modules=["k_proj", "up_proj"]
    )
    engine = make_engine(
        tmp_path / "model", num_blocks=22, max_num_batched_tokens=40, max_num_sequences=14, attention_backend=backend
    )
    engine.load_adapter("first", first)
    engine.load_adapter("second", second)
    requests = adapter_requests()

    outputs = run(engine, requests)

    stats = engine.stats()
    assert stats.num_preemptions > 0
    assert stats.num_partial_chunks > 0
    assert stats.prefix_hits + stats.num_recovered_tokens > 0
    assert stats.num_forks > 0
    models = {None: build_model(family), "first": merged_model(first, family), "second": merged_model(second, family)}
    for request in requests:
        assert_greedy(outputs[request.id], request, models[request.adapter])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ranks_of_several_panels_beside_adapters_of_few_layers(dtype: str, tmp_path: Path) -> None:
    """In bfloat16, where tokens may differ, log-probabilities are near those of the reference."""
    engine = make_engine(save_model(tmp_path / "model"), dtype=dtype, max_num_batched_tokens=50)
    first = save_adapter(tmp_path / "first", r=44, lora_alpha=4)
    second = save_adapter(
        tmp_path / "second", seed=2, r=3, target_modules=["v_proj", "gate_proj"], layers_to_transform=[1]
    )
    engine.load_adapter("first", first)
    engine.load_adapter("second", second)
    models = {None: build_model("qwen3"), "first": merged_model(first), "second": merged_model(second)}
    requests = adapter_requests(prompt_log_probs=0)

    outputs = run(engine, requests)

    for request in requests:
        if dtype == "float32":
            assert_greedy(outputs[request.id], request, models[request.adapter])
            continue
        tokens = torch.tensor(request.prompt_token_ids)
        with torch.no_grad():
            logits = models[request.adapter](tokens[None]).logits[0].float()
        expected = logits.log_softmax(dim=-1)[:-1].gather(1, tokens[1:, None]).squeeze(1)
        found = torch.tensor(outputs[request.id].prompt_log_probs[1:])
        assert (found - expected).abs().mean() < 0.2


def test_prompts_are_scored_with_their_adapter(tmp_path: Path) -> None:
    engine = make_engine(save_model(tmp_path / "model"), max_num_batched_tokens=24)
    first = save_adapter(tmp_path / "first")
    engine.load_adapter("first", first)
    requests = [request for request in adapter_requests(9, prompt_log_probs=0) if request.adapter != "second"]

    outputs = run(engine, requests)

    for request in requests:
        model = build_model("qwen3") if request.adapter is None else merged_model(first)
        assert_greedy(outputs[request.id], request, model)


def test_cached_prefixes_are_not_shared_between_adapters(tmp_path: Path) -> None:
    engine = make_engine(save_model(tmp_path / "model"))
    engine.load_adapter("first", save_adapter(tmp_path / "first"))
    engine.load_adapter("second", save_adapter(tmp_path / "second", seed=2))
    prompt = list(range(1, 30))

    def num_cached(name: str | None) -> int:
        request = replace(make_request("r", prompt, temperature=0.0, max_tokens=2), adapter=name)
        return run(engine, [request])["r"].num_cached_tokens

    assert [num_cached(name) for name in NAMES] == [0, 0, 0]
    assert [num_cached(name) for name in NAMES] == [28, 28, 28]

    engine.unload_adapter("first")
    engine.load_adapter("first", tmp_path / "second")
    assert num_cached("first") == 0, "the name is the same, the adapter is another"


_STEPS = st.lists(
    st.tuples(st.sampled_from(["ask", "ask", "load", "unload"]), st.sampled_from(["a", "b"])), min_size=4, max_size=24
)


@settings(max_examples=25, deadline=None)
@given(steps=_STEPS)
def test_whatever_is_loaded_and_reloaded_nobody_has_the_cache_of_another(
    steps: list[tuple[str, str]], adapter_folders: tuple[Path, list[Path]]
) -> None:
    """The same prompt is cached if, and only if, it was computed with this very adapter; answers are always its own."""
    model, folders = adapter_folders
    engine = make_engine(model, num_blocks=400)
    loaded: dict[str, int] = {}
    computed: set[int] = set()
    num_loads = 0
    for action, name in steps:
        if action == "load":
            num_loads += 1
            engine.load_adapter(name, folders[num_loads % 2], in_place=True)
            loaded[name] = num_loads
        elif action == "unload" and name in loaded:
            engine.unload_adapter(name)
            del loaded[name]
        elif name in loaded:
            request = replace(make_request("r", range(1, 30), temperature=0.0, max_tokens=4), adapter=name)
            output = run(engine, [request])["r"]
            assert output.num_cached_tokens == (28 if loaded[name] in computed else 0)
            computed.add(loaded[name])
            assert_greedy(output, request, _merged(folders[loaded[name] % 2]))


@cache
def _merged(folder: Path) -> Any:
    return merged_model(folder)


@pytest.fixture(scope="module")
def adapter_folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """A model and two adapters of it."""
    folder = tmp_path_factory.mktemp("adapters")
    return save_model(folder / "model"), [save_adapter(folder / str(seed), seed=seed) for seed in (1, 2)]


def test_a_request_keeps_the_adapter_that_is_replaced_under_it(tmp_path: Path) -> None:
    engine = make_engine(save_model(tmp_path / "model"))
    folders = [save_adapter(tmp_path / str(seed), seed=seed) for seed in (1, 2)]
    engine.load_adapter("first", folders[0])
    early = replace(make_request("early", range(1, 10), temperature=0.0, max_tokens=12), adapter="first")
    engine.add(early)
    engine.step()
    with pytest.raises(UserError, match="loaded already"):
        engine.load_adapter("first", folders[1])
    engine.load_adapter("first", folders[1], in_place=True)
    late = replace(early, id="late")

    outputs = run(engine, [late])

    assert_greedy(outputs["early"], early, merged_model(folders[0]))
    assert_greedy(outputs["late"], late, merged_model(folders[1]))


_ROOTS = st.tuples(st.integers(-(2**31), 2**31), st.text(max_size=12), st.integers(0, 2**40))


@given(_ROOTS, _ROOTS)
def test_chains_of_block_names_begin_alike_only_for_the_same_version_salt_and_adapter(
    first: tuple[int, str, int], second: tuple[int, str, int]
) -> None:
    assert (root_hash(*first) == root_hash(*second)) == (first == second)


def test_requests_go_on_with_an_adapter_that_is_unloaded_under_them(tmp_path: Path) -> None:
    engine = make_engine(save_model(tmp_path / "model"))
    first = save_adapter(tmp_path / "first")
    engine.load_adapter("first", first)
    request = replace(make_request("r", range(1, 10), temperature=0.0, max_tokens=12), adapter="first")
    engine.add(request)
    for _ in range(4):
        assert not engine.step()

    engine.unload_adapter("first")
    late = replace(request, id="late")
    assert not engine.add(late)

    outputs = run(engine)
    assert_greedy(outputs["r"], request, merged_model(first))
    assert outputs["late"].error == "adapter 'first' is not loaded; those that are: none"


def test_adapters_stay_over_new_weights(tmp_path: Path) -> None:
    engine = make_engine(save_model(tmp_path / "model"))
    first = save_adapter(tmp_path / "first")
    engine.load_adapter("first", first)
    other = build_model("qwen3", seed=8)
    engine.load_weights(1, {name: tensor.detach() for name, tensor in other.state_dict().items()})

    request = replace(make_request("r", range(1, 10), temperature=0.0, max_tokens=12), adapter="first")

    from peft import PeftModel

    merged = PeftModel.from_pretrained(other, str(first)).merge_and_unload().eval()
    assert_greedy(run(engine, [request])["r"], request, merged)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_bits_do_not_depend_on_the_batch(backend: str, dtype: str, tmp_path: Path) -> None:
    engine = make_engine(save_model(tmp_path / "model"), deterministic=True, attention_backend=backend, dtype=dtype)
    engine.load_adapter("first", save_adapter(tmp_path / "first"))
    engine.load_adapter("second", save_adapter(tmp_path / "second", seed=2))
    requests = adapter_requests(12, temperature=0.8, seed=5)

    together = run(engine, requests)
    engine = make_engine(tmp_path / "model", deterministic=True, attention_backend=backend, dtype=dtype)
    engine.load_adapter("second", tmp_path / "second")
    engine.load_adapter("first", tmp_path / "first")
    alone = {request.id: run(engine, [request])[request.id] for request in requests}

    for request_id, output in alone.items():
        assert output.samples == together[request_id].samples


def test_adapters_beside_weights_of_eight_bits(tmp_path: Path) -> None:
    """The model is rounded, and the adapter is not: what it adds is there."""
    save_model(tmp_path / "model")
    engine = make_engine(tmp_path / "model", weight_dtype="int8")
    if not isinstance(engine._runner._decoder, CpuProgram):
        pytest.skip("no program is compiled here")
    first = save_adapter(tmp_path / "first")
    engine.load_adapter("first", first)
    prompt = list(range(1, 12))
    wanted = replace(make_request("r", prompt, max_tokens=1, prompt_log_probs=0), adapter="first")

    scores = torch.tensor(run(engine, [wanted])["r"].prompt_log_probs[1:])

    def reference(model: Any) -> torch.Tensor:
        with torch.no_grad():
            log_probs = model(torch.tensor([prompt])).logits[0].log_softmax(dim=-1)
        return log_probs[:-1].gather(1, torch.tensor(prompt[1:])[:, None]).squeeze(1)

    with_adapter, without = reference(merged_model(first)), reference(build_model("qwen3"))
    assert (scores - with_adapter).abs().max() < 0.2 * (without - with_adapter).abs().max()


def test_attention_of_a_model_with_experts_can_have_adapters(tmp_path: Path) -> None:
    engine = make_engine(save_model(tmp_path / "model", "qwen3_moe"))
    first = save_adapter(tmp_path / "first", "qwen3_moe", target_modules=["q_proj", "o_proj"])
    engine.load_adapter("first", first)
    request = replace(make_request("r", range(1, 10), temperature=0.0, max_tokens=12), adapter="first")

    assert_greedy(run(engine, [request])["r"], request, merged_model(first, "qwen3_moe"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "use_dora=True is not supported, only plain LoRA is; merge it into the model"),
        ({"bias": "all"}, "bias='all' is not supported, must be 'none'"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\] is not supported"),
        ({"alpha_pattern": {"q_proj": 3}}, "alpha_pattern=.* is not supported"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' has changed the model's own weights"),
        ({"peft_type": "LOHA"}, "peft_type='LOHA' is not supported, must be LORA"),
        ({"r": 6}, "has rank 5, and adapter_config.json says r=6"),
        ({"r": 0}, "r=0 is no number that can be used"),
        ({"lora_alpha": "much"}, "lora_alpha='much' is no number"),
    ],
)
def test_what_is_not_computed_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    engine = make_engine(save_model(tmp_path / "model"))
    path = save_adapter(tmp_path / "first") / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    with pytest.raises(ModelError, match=message):
        engine.load_adapter("first", path.parent)
    assert engine.adapters == ()


def test_layers_that_cannot_have_adapters_are_refused(tmp_path: Path) -> None:
    engine = make_engine(save_model(tmp_path / "model"))
    with_head = save_adapter(tmp_path / "head", target_modules=["q_proj", "lm_head"])
    with pytest.raises(ModelError, match=r"lm_head.* is not supported, adapters can be of q_proj"):
        engine.load_adapter("head", with_head)
    with pytest.raises(ModelError, match="it is an adapter of another model"):
        engine.load_adapter("other", save_adapter(tmp_path / "other", "llama"))
    with pytest.raises(ModelError, match=r"is no adapter: it has no adapter_config\.json"):
        engine.load_adapter("model", tmp_path / "model")
    (tmp_path / "head" / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"is no adapter: it has no adapter_model\.safetensors"):
        engine.load_adapter("head", with_head)


def test_names_are_taken_once_and_must_be_there(tmp_path: Path) -> None:
    engine = make_engine(save_model(tmp_path / "model"))
    first = save_adapter(tmp_path / "first", rank_pattern={"k_proj": 3})
    engine.load_adapter("first", first)
    assert engine.adapters == ("first",)
    with pytest.raises(UserError, match="an adapter 'first' is loaded already"):
        engine.load_adapter("first", first)
    with pytest.raises(UserError, match="no adapter 'second' to unload"):
        engine.unload_adapter("second")
    request = replace(make_request("r", range(1, 10), temperature=0.0, max_tokens=12), adapter="first")
    assert_greedy(run(engine, [request])["r"], request, merged_model(first))


@only_on_x86
@pytest.mark.parametrize("instructions", OLDER)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_older_processors_compute_the_same_but_for_rounding(instructions: str, dtype: str, tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    first = save_adapter(tmp_path / "first", r=44, lora_alpha=4)
    wanted = replace(make_request("r", range(1, 40), max_tokens=1, prompt_log_probs=0), adapter="first")

    def scores() -> torch.Tensor:
        engine = make_engine(tmp_path / "model", dtype=dtype, deterministic=True)
        engine.load_adapter("first", first)
        return torch.tensor(run(engine, [wanted])["r"].prompt_log_probs[1:])

    newest = scores()
    with instructions_up_to(instructions):
        assert (scores() - newest).abs().mean() < (0.2 if dtype == "bfloat16" else 1e-3)
