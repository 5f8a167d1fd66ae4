"""Weights are swapped in the middle of generation, refused when they do not fit, and freed and brought back."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_builders import (
    BOTH_WAYS,
    FAMILIES,
    VOCAB_SIZE,
    build_model,
    make_engine,
    make_request,
    run,
    save_model,
    weight_bytes,
    weights_of,
)
from safetensors.torch import load_file, save_file

from rlserve.engine import Engine, FinishReason, SampleOutput
from rlserve.engine.requests.generated_tokens import GeneratedTokens
from rlserve.errors import IllegalTransitionError, ModelError, WeightsRefusedError

pytestmark = BOTH_WAYS

PROMPT = tuple(random.Random(3).choices(range(VOCAB_SIZE), k=30))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model", "qwen3", seed=0)


def _snapshot(engine: Engine) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in engine.named_weights()}


def _made_by(sample: SampleOutput, version: int) -> SampleOutput:
    """A sample as it was when it had only the tokens of a version, its first."""
    number = sample.weight_versions.count(version)
    columns = (sample.token_ids, sample.log_probs, sample.behaviour_log_probs, sample.weight_versions)
    tokens = GeneratedTokens.of(*(column[:number] for column in columns))
    return SampleOutput(index=sample.index, tokens=tokens, finish_reason=FinishReason.ABORT)


def _equal(engine: Engine, expected: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, expected[name]) for name, tensor in engine.named_weights())


@pytest.mark.parametrize("family", FAMILIES)
def test_named_weights_are_those_of_the_folder_and_of_an_update(family: str, tmp_path: Path) -> None:
    first, second = (save_model(tmp_path / str(seed), family, seed=seed) / "model.safetensors" for seed in (0, 1))
    engine = make_engine(first.parent)
    named = dict(engine.named_weights())
    assert {*named, "lm_head.weight"} == {*load_file(first), "lm_head.weight"}
    assert _equal(engine, load_file(first))

    engine.load_weights(4, load_file(second))

    assert engine.weight_version == 4
    assert _equal(engine, load_file(second))


def test_experts_may_come_in_one_tensor_in_updates_and_in_folders(tmp_path: Path) -> None:
    stacked = weights_of("qwen3_moe", 1)
    folder, other = (save_model(tmp_path / str(seed), "qwen3_moe", seed=seed) for seed in (0, 1))
    assert "model.layers.0.mlp.experts.gate_up_proj" in stacked
    apart = load_file(other / "model.safetensors")
    engine = make_engine(folder)

    engine.load_weights(1, stacked)

    assert _equal(engine, apart)
    save_file({name: tensor.contiguous() for name, tensor in stacked.items()}, other / "model.safetensors")
    assert _equal(make_engine(other), apart)
    for name in ("model.layers.0.mlp.experts.gate_up_proj", "model.layers.2.mlp.experts.down_proj"):
        bad = {**stacked, name: stacked[name][1:]}
        with pytest.raises(WeightsRefusedError, match=r"experts\.0\.\w+\.weight is missing"):
            engine.load_weights(2, bad)
    assert _equal(engine, apart)


def test_a_swap_in_mid_generation_keeps_tokens_and_stamps_later_ones_with_the_new_version(folder: Path) -> None:
    requests = [
        make_request("group", PROMPT, n=3, max_tokens=30, seed=1),
        make_request("other", PROMPT[:11], max_tokens=25, seed=2),
    ]
    undisturbed = run(make_engine(folder), requests)
    engine = make_engine(folder)
    for request in requests:
        engine.add(request)
    for _ in range(10):
        assert engine.step() == []

    engine.load_weights(7, weights_of("qwen3", 1))
    outputs = run(engine)

    for request in requests:
        for sample, before in zip(outputs[request.id].samples, undisturbed[request.id].samples, strict=True):
            assert sample.weight_versions == (0,) * 10 + (7,) * (request.sampling.max_tokens - 10)
            assert sample.token_ids[:10] == before.token_ids[:10]
            assert sample.log_probs[:10] == pytest.approx(before.log_probs[:10], abs=1e-5)
            assert sample.token_ids != before.token_ids


def test_computed_anew_a_group_goes_on_as_under_the_new_weights_alone(folder: Path, tmp_path: Path) -> None:
    """Tokens and log-probabilities so far stay; those to come are, to the bit, what an engine draws that has only ever
    had the new weights and is given those tokens. With the KV kept they are not. The prompt is computed once more."""
    request = make_request("group", PROMPT, n=3, max_tokens=30, seed=1)
    outputs, computed = {}, {}
    for way in ("keep_kv", "recompute"):
        engine = make_engine(folder, on_new_weights=way)
        engine.add(request)
        for _ in range(12):
            assert engine.step() == []
        before = engine.stats().num_computed_tokens
        engine.load_weights(7, weights_of("qwen3", 1))
        engine.check_integrity()
        outputs[way] = run(engine)[request.id].samples
        computed[way] = engine.stats().num_computed_tokens - before
    so_far = tuple(_made_by(sample, 0) for sample in outputs["recompute"])
    num_so_far = len(so_far[0].token_ids)
    assert num_so_far == 12, "a token that was being drawn is kept, and is of the old weights"
    fresh = make_engine(save_model(tmp_path / "next", "qwen3", seed=1))
    alone = run(fresh, [replace(request, resumed=so_far)])[request.id].samples
    for kept, anew, expected in zip(outputs["keep_kv"], outputs["recompute"], alone, strict=True):
        assert kept.token_ids[:num_so_far] == anew.token_ids[:num_so_far] == expected.token_ids[:num_so_far]
        assert kept.log_probs[:num_so_far] == anew.log_probs[:num_so_far] == expected.log_probs[:num_so_far]
        assert kept.weight_versions == anew.weight_versions == (0,) * num_so_far + (7,) * (30 - num_so_far)
        assert (anew.token_ids, anew.log_probs) == (expected.token_ids, expected.log_probs)
        assert kept.log_probs[num_so_far] != anew.log_probs[num_so_far]
    num_anew = computed["recompute"] - computed["keep_kv"]
    full_blocks = len(PROMPT) // 4 * 4
    assert len(PROMPT) + 3 * num_so_far - 3 <= num_anew <= 3 * (len(PROMPT) + num_so_far) - 2 * full_blocks


@pytest.mark.parametrize("version", [0, 1], ids=["same version again", "next version"])
def test_after_a_swap_the_engine_equals_a_fresh_one_and_finds_no_old_prefix(
    folder: Path, tmp_path: Path, version: int
) -> None:
    fresh = make_engine(save_model(tmp_path / "next", "qwen3", seed=1))
    engine = make_engine(folder)
    old = run(engine, [make_request("old", PROMPT, max_tokens=20)])["old"]
    engine.add(make_request("in flight", PROMPT, max_tokens=40, seed=5))
    engine.step()
    assert engine.stats().prefix_hits > 0

    engine.load_weights(version, weights_of("qwen3", 1))
    for _ in range(20):
        assert engine.step() == []
    request = make_request("new", PROMPT, max_tokens=10)
    engine.add(request)
    outputs = []
    while not outputs:
        outputs = engine.step()
    (new,), expected = outputs, run(fresh, [request])["new"]

    assert new.num_cached_tokens == 0, "blocks made by old weights, in flight ones included, must not be shared"
    assert new.samples[0].token_ids == expected.samples[0].token_ids
    assert new.samples[0].log_probs == pytest.approx(expected.samples[0].log_probs, abs=1e-5)
    assert new.samples[0].token_ids != old.samples[0].token_ids[:10]
    (in_flight,) = engine.abort(["in flight"])
    longer = make_request("longer", PROMPT + in_flight.samples[0].token_ids, max_tokens=1)
    assert run(engine, [longer])["longer"].num_cached_tokens == 28, "what the new request made, and no more"


def test_prefixes_are_shared_again_under_the_new_version(folder: Path) -> None:
    engine = make_engine(folder)
    engine.load_weights(1, weights_of("qwen3", 1))
    run(engine, [make_request("first", PROMPT)])
    assert run(engine, [make_request("second", PROMPT)])["second"].num_cached_tokens == 28


def test_a_sample_preempted_after_a_swap_is_computed_anew_and_goes_on_under_the_new_version(folder: Path) -> None:
    engine = make_engine(folder, num_blocks=16)
    requests = [make_request(str(index), PROMPT[:8], max_tokens=40, seed=index) for index in range(4)]
    for request in requests:
        engine.add(request)
    for _ in range(5):
        engine.step()
    assert engine.stats().num_preemptions == 0
    engine.load_weights(1, weights_of("qwen3", 1))

    outputs = run(engine)

    assert engine.stats().num_preemptions > 0
    for output in outputs.values():
        assert output.samples[0].weight_versions == (0,) * 5 + (1,) * 35


@pytest.mark.parametrize("version", [0, 1], ids=["same version again", "next version"])
def test_a_prompt_half_computed_when_weights_change_is_computed_whole_by_the_new_ones(
    folder: Path, tmp_path: Path, version: int
) -> None:
    requests = [
        make_request("group", PROMPT, n=3, max_tokens=9, seed=1),
        make_request("scored", PROMPT[::-1], max_tokens=9, seed=2, prompt_log_probs=1),
    ]
    fresh = make_engine(save_model(tmp_path / "next", "qwen3", seed=1), max_num_batched_tokens=16)
    expected = run(fresh, requests)
    for num_steps, names in ((1, ("group", "scored")), (2, ("scored",))):
        engine = make_engine(folder, max_num_batched_tokens=16)
        for request in requests:
            engine.add(request)
        for _ in range(num_steps):
            engine.step()
        assert engine.stats().num_partial_chunks == num_steps
        engine.load_weights(version, weights_of("qwen3", 1))
        outputs = run(engine)

        assert engine.stats().num_preemptions == 0
        for name in names:
            for sample, other in zip(outputs[name].samples, expected[name].samples, strict=True):
                assert sample.token_ids == other.token_ids
                assert sample.log_probs == pytest.approx(other.log_probs, abs=1e-5)
                assert set(sample.weight_versions) == {version}
        scores = outputs["scored"].prompt_log_probs[1:]
        assert scores == pytest.approx(expected["scored"].prompt_log_probs[1:], abs=1e-5)


def _without(name: str) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in weights_of("qwen3", 1).items() if key != name}


@pytest.mark.parametrize(
    ("version", "tensors", "message"),
    [
        (2, weights_of("qwen3", 1), "version 2, but the engine has 3"),
        (4, _without("model.norm.weight"), "model.norm.weight is missing"),
        (4, weights_of("qwen3", 1) | {"extra.weight": torch.zeros(1)}, "extra.weight is unknown"),
        (4, weights_of("qwen3", 1) | {"model.norm.weight": torch.zeros(3)}, r"has shape \[3\], must be \[48\]"),
    ],
)
def test_weights_that_do_not_fit_change_nothing(
    folder: Path, version: int, tensors: dict[str, torch.Tensor], message: str
) -> None:
    engine = make_engine(folder)
    engine.load_weights(3, weights_of("qwen3", 0))
    before = _snapshot(engine)
    with pytest.raises(WeightsRefusedError, match=message):
        engine.load_weights(version, tensors)
    assert engine.weight_version == 3
    assert _equal(engine, before)


def test_a_tied_head_may_be_sent_along_but_must_be_the_embedding(tmp_path: Path) -> None:
    engine = make_engine(save_model(tmp_path, "qwen2"))
    tied = weights_of("qwen2", 1)
    assert "lm_head.weight" in tied
    engine.load_weights(1, tied)
    with pytest.raises(WeightsRefusedError, match="ties the two"):
        engine.load_weights(2, tied | {"lm_head.weight": tied["lm_head.weight"] + 1})
    engine.load_weights(2, {name: tensor for name, tensor in tied.items() if name != "lm_head.weight"})


def test_an_engine_without_weights_refuses_requests_until_it_gets_them(folder: Path) -> None:
    engine = make_engine(folder, load_weights=False)
    assert engine.weight_version == -1
    refused = run(engine, [make_request("0", PROMPT)])["0"]
    assert refused.error is not None
    assert "no weights" in refused.error

    engine.load_weights(5, weights_of("qwen3", 0))

    served = run(engine, [make_request("0", PROMPT)])["0"]
    assert served.samples == tuple(
        replace(sample, tokens=replace(sample.tokens, weight_versions=np.full(16, 5)))
        for sample in run(make_engine(folder), [make_request("0", PROMPT)])["0"].samples
    )


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_released_kv_memory_comes_back_and_serves_the_same(folder: Path, backend: str) -> None:
    engine = make_engine(folder, attention_backend=backend)
    request = make_request("0", PROMPT, max_tokens=12)
    before = run(engine, [request])["0"]
    engine.add(request)
    with pytest.raises(IllegalTransitionError, match="1 requests are in flight"):
        engine.release_memory()
    engine.abort(["0"])

    engine.release_memory()

    with pytest.raises(IllegalTransitionError, match="released already"):
        engine.release_memory()
    assert "released" in (run(engine, [request])["0"].error or "")
    engine.restore_memory()
    with pytest.raises(IllegalTransitionError, match="nothing is released"):
        engine.restore_memory()
    after = run(engine, [request])["0"]
    assert after.samples == before.samples
    assert after.num_cached_tokens == 0, "the cache's content is gone"


def test_waking_without_weights_refuses_to_serve_until_they_come(folder: Path) -> None:
    engine = make_engine(folder)
    request = make_request("0", PROMPT)
    before = run(engine, [request])["0"]
    engine.release_memory(weights=True)
    assert weight_bytes(engine) == 0
    with pytest.raises(WeightsRefusedError, match="memory is released"):
        engine.named_weights()
    with pytest.raises(WeightsRefusedError, match="restore it first"):
        engine.load_weights(1, weights_of("qwen3", 0))
    engine.restore_memory()
    assert "no weights" in (run(engine, [request])["0"].error or "")

    engine.load_weights(0, weights_of("qwen3", 0))

    assert run(engine, [request])["0"].samples == before.samples


def test_broken_weights_end_the_request_with_an_error_and_the_engine_goes_on(folder: Path) -> None:
    engine = make_engine(folder)
    broken = {name: torch.full_like(tensor, torch.nan) for name, tensor in weights_of("qwen3", 0).items()}
    engine.load_weights(1, broken)
    output = run(engine, [make_request("0", PROMPT, n=3)])["0"]
    assert "not finite" in (output.error or "")
    assert {sample.finish_reason for sample in output.samples} == {FinishReason.ERROR}

    engine.load_weights(2, weights_of("qwen3", 0))

    expected = run(make_engine(folder), [make_request("0", PROMPT, n=3)])["0"]
    served = run(engine, [make_request("0", PROMPT, n=3)])["0"]
    assert [sample.token_ids for sample in served.samples] == [sample.token_ids for sample in expected.samples]


def test_a_folder_whose_tensors_do_not_fit_its_config_is_refused(tmp_path: Path) -> None:
    build_model("qwen3").save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    with pytest.raises(ModelError, match=r"model\.layers\.2\.input_layernorm\.weight is missing"):
        make_engine(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"neither model\.safetensors"):
        make_engine(tmp_path)


def test_frequencies_of_rotary_positions_in_an_older_checkpoint_are_passed_over(tmp_path: Path) -> None:
    file = save_model(tmp_path, "llama") / "model.safetensors"
    plain = run(make_engine(tmp_path), [make_request("0", PROMPT)])
    buffers = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(6) for layer in range(2)}
    save_file(load_file(file) | buffers, file)
    assert run(make_engine(tmp_path), [make_request("0", PROMPT)])["0"].samples == plain["0"].samples
