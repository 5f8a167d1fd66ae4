"""Whole sets of weights, staged by any thread beside the running model and swapped in at once."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from engine_builders import BOTH_WAYS, VOCAB_SIZE, make_engine, make_request, run, save_model, weight_bytes, weights_of

from rlserve.engine import Engine
from rlserve.engine.weights.fingerprint import fingerprint
from rlserve.errors import WeightsRefusedError

pytestmark = BOTH_WAYS

PROMPT = tuple(random.Random(5).choices(range(VOCAB_SIZE), k=20))
FAMILIES = ["qwen3", "qwen2", "gemma2", "qwen3_moe"]
"""Qwen 2 has biases and a tied head, Gemma more norms, and of experts nothing is exchanged."""


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return make_engine(save_model(tmp_path / "model", "qwen3", seed=0))


def has(engine: Engine, family: str, seed: int) -> bool:
    expected = weights_of(family, seed)
    return all(torch.equal(tensor, expected[name]) for name, tensor in engine.named_weights())


def places_of(engine: Engine) -> list[int]:
    return [tensor.data_ptr() for tensor in engine._runner._parameters.exchangeable]


def test_they_are_staged_in_mid_generation_and_stamp_what_comes_after_the_swap(engine: Engine) -> None:
    request = make_request("0", PROMPT, max_tokens=30, seed=1)
    undisturbed = run(engine, [request])["0"].samples[0]
    engine.add(request)
    with ThreadPoolExecutor() as threads:
        staging = threads.submit(engine.stage_weights, weights_of("qwen3", 1))
        for _ in range(10):
            assert engine.step() == []
        staged = staging.result()
    assert (engine.weight_version, has(engine, "qwen3", 0)) == (0, True)

    assert engine.swap_weights(4, staged) == staged.fingerprint == fingerprint(engine.named_weights())

    assert (engine.weight_version, has(engine, "qwen3", 1)) == (4, True)
    (sample,) = run(engine)["0"].samples
    assert sample.weight_versions == (0,) * 10 + (4,) * 20
    assert sample.token_ids[:10] == undisturbed.token_ids[:10]
    assert sample.token_ids[10:] != undisturbed.token_ids[10:]


@pytest.mark.parametrize("family", FAMILIES)
def test_version_after_version_the_engine_equals_one_that_loads_them(family: str, tmp_path: Path) -> None:
    folders = [save_model(tmp_path / str(seed), family, seed=seed) for seed in range(4)]
    engine = make_engine(folders[0])
    places = []
    for version in (1, 2, 3):
        fresh = make_engine(folders[version])
        staged = engine.stage_weights(dict(fresh.named_weights()))
        assert engine.swap_weights(version, staged) == fingerprint(fresh.named_weights())
        request = make_request("0", PROMPT, n=2, max_tokens=12, seed=version)
        found, expected = (run(each, [request])["0"].samples for each in (engine, fresh))
        assert [sample.token_ids for sample in found] == [sample.token_ids for sample in expected]
        assert [sample.log_probs for sample in found] == [sample.log_probs for sample in expected]
        places.append(places_of(engine))
    assert places[0] == places[2], "two memories take turns"
    assert places[0] != places[1] or family == "qwen3_moe"


def test_what_is_rounded_to_int8_is_rounded_anew(tmp_path: Path) -> None:
    engine = make_engine(save_model(tmp_path / "0", "qwen3", seed=0), weight_dtype="int8")
    fresh = make_engine(save_model(tmp_path / "1", "qwen3", seed=1), weight_dtype="int8")
    engine.swap_weights(1, engine.stage_weights(weights_of("qwen3", 1)))
    request = make_request("0", PROMPT, max_tokens=12, seed=1)
    found, expected = (run(each, [request])["0"].samples[0] for each in (engine, fresh))
    assert (found.token_ids, found.log_probs) == (expected.token_ids, expected.log_probs)


def test_other_ways_to_new_weights_go_on_from_what_was_swapped_in(engine: Engine) -> None:
    engine.swap_weights(1, engine.stage_weights(weights_of("qwen3", 1)))
    name, target = "model.layers.0.mlp.up_proj.weight", {name: w.clone() for name, w in weights_of("qwen3", 1).items()}
    target[name].view(-1)[7] = 3.0
    engine.apply_weight_delta(2, 1, {name: (torch.tensor([7]), torch.tensor([3.0]))}, fingerprint(target.items()))
    engine.swap_weights(3, engine.stage_weights(weights_of("qwen3", 2)))
    assert has(engine, "qwen3", 2)
    engine.load_weights(4, weights_of("qwen3", 1))
    assert has(engine, "qwen3", 1)


def test_what_does_not_fit_is_refused_when_it_is_staged_and_an_older_version_when_it_is_swapped(engine: Engine) -> None:
    few = dict(list(weights_of("qwen3", 1).items())[:-1])
    with pytest.raises(WeightsRefusedError, match="is missing"):
        engine.stage_weights(few)
    engine.swap_weights(2, engine.stage_weights(weights_of("qwen3", 1)))
    older = engine.stage_weights(weights_of("qwen3", 2))
    with pytest.raises(WeightsRefusedError, match="version 1, but the engine has 2"):
        engine.swap_weights(1, older)
    assert (engine.weight_version, has(engine, "qwen3", 1)) == (2, True)
    engine.swap_weights(3, older)
    assert has(engine, "qwen3", 2)


def test_all_of_it_is_freed_and_taken_again(engine: Engine) -> None:
    engine.swap_weights(1, engine.stage_weights(weights_of("qwen3", 1)))
    engine.release_memory(weights=True)
    assert weight_bytes(engine) == 0
    assert engine._runner._parameters._spare is None
    staged = engine.stage_weights(weights_of("qwen3", 2))
    with pytest.raises(WeightsRefusedError, match="restore it first"):
        engine.swap_weights(2, staged)
    engine.restore_memory()
    engine.swap_weights(2, staged)
    assert has(engine, "qwen3", 2)
