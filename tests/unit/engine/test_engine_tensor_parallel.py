"""One model over two ranks: the same tokens, the same weights as in one. They are threads here, and processes in
``test_engine_parallel_ranks.py``: what they say to each other is the same."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_builders import (
    VOCAB_SIZE,
    engine_over_two_ranks,
    make_engine,
    make_request,
    run,
    save_model,
    weight_bytes,
    weights_of,
)

from rlserve.engine import Engine, EngineConfig, Request, RequestOutput
from rlserve.engine.weights.fingerprint import fingerprint
from rlserve.errors import ConfigurationError, IllegalTransitionError, ModelError, UserError, WeightsRefusedError

MakeEngine = Callable[..., Engine]


@pytest.fixture
def make_parallel() -> Iterator[MakeEngine]:
    """Makes engines over two ranks, and ends them."""
    with ExitStack() as engines:
        yield lambda folder, **changes: engines.enter_context(engine_over_two_ranks(folder, **changes))


def _requests(number: int = 50) -> list[Request]:
    """Prompts of 1 to 70 tokens, some with a common beginning, greedy and not, some with several samples."""
    rng = random.Random(3)
    beginning = rng.choices(range(VOCAB_SIZE), k=20)
    requests = []
    for index in range(number):
        prompt = (beginning if index % 2 else []) + rng.choices(range(VOCAB_SIZE), k=rng.randint(1, 50))
        sampling: dict[str, Any] = {"temperature": 0.0} if index % 3 else {"seed": index, "top_p": 0.9}
        requests.append(
            make_request(str(index), prompt, n=1 + (index % 5 == 0), max_tokens=rng.randint(1, 20), **sampling)
        )
    return requests


def _assert_same(found: dict[str, RequestOutput], expected: dict[str, RequestOutput]) -> None:
    assert found.keys() == expected.keys()
    for request_id, output in expected.items():
        assert found[request_id].error is output.error is None
        for sample, wanted in zip(found[request_id].samples, output.samples, strict=True):
            assert sample.token_ids == wanted.token_ids
            assert sample.weight_versions == wanted.weight_versions
            assert sample.finish_reason is wanted.finish_reason
            assert sample.log_probs == pytest.approx(wanted.log_probs, abs=1e-4)
            assert sample.behaviour_log_probs == pytest.approx(wanted.behaviour_log_probs, abs=1e-4)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("llama", {"num_key_value_heads": 1}),
        ("mistral", {}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("gemma2", {}),
        ("gemma3", {}),
        ("qwen3_moe", {}),
    ],
)
def test_tokens_of_two_ranks_are_those_of_one(
    family: str, changes: dict[str, Any], tmp_path: Path, make_parallel: MakeEngine
) -> None:
    folder = save_model(tmp_path, family, **changes)
    limits = {"num_blocks": 40, "max_num_sequences": 20, "max_num_batched_tokens": 50}
    engine = make_parallel(folder, **limits)

    outputs = run(engine, _requests())

    stats = engine.stats()
    assert stats.num_preemptions > 2
    assert stats.num_partial_chunks > 5
    assert stats.prefix_hits > 100
    assert stats.num_forks > 5
    assert stats.num_block_copies > 5
    one = make_engine(folder, **limits)
    _assert_same(outputs, run(one, _requests()))
    assert fingerprint(engine.named_weights()) == fingerprint(one.named_weights())


@pytest.mark.parametrize(
    "changes", [{"attention_backend": "torch"}, {"kv_cache_dtype": "int8"}, {"dtype": "bfloat16"}], ids=str
)
def test_other_backends_and_types(changes: dict[str, Any], tmp_path: Path, make_parallel: MakeEngine) -> None:
    folder = save_model(tmp_path, "qwen3", initializer_range=0.1)
    request = make_request("0", range(1, 60), temperature=0.0, max_tokens=1, prompt_log_probs=0)
    found, expected = (
        run(engine, [request])["0"] for engine in (make_parallel(folder, **changes), make_engine(folder, **changes))
    )
    tolerance = 1e-4 if changes.keys() == {"attention_backend"} else 0.05
    assert found.prompt_log_probs[1:] == pytest.approx(expected.prompt_log_probs[1:], abs=tolerance)


def test_details_of_draws_and_prompts_are_of_the_whole_vocabulary(tmp_path: Path, make_parallel: MakeEngine) -> None:
    folder = save_model(tmp_path, "gemma2")
    requests = [
        make_request("told", range(40), prompt_log_probs=3, num_top_log_probs=5, kept_support=True, top_k=7, n=2),
        make_request("last", range(30), allowed_token_ids=(VOCAB_SIZE - 1, 0), repetition_penalty=1.5),
    ]
    found, expected = (run(engine, requests) for engine in (make_parallel(folder), make_engine(folder)))
    _assert_same(found, expected)
    assert set(found["last"].samples[0].token_ids) == {0, VOCAB_SIZE - 1}
    told, wanted = found["told"], expected["told"]
    assert told.prompt_log_probs[1:] == pytest.approx(wanted.prompt_log_probs[1:], abs=1e-4)
    assert [[token for token, _ in top] for top in told.prompt_top_log_probs] == [
        [token for token, _ in top] for top in wanted.prompt_top_log_probs
    ]
    for sample, other in zip(told.samples, wanted.samples, strict=True):
        assert sample.kept_support == other.kept_support
        assert [[token for token, _ in top] for top in sample.top_log_probs] == [
            [token for token, _ in top] for top in other.top_log_probs
        ]


def _deltas(engine: Engine, target: dict[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    changes = {}
    for name, tensor in engine.named_weights():
        indices = (tensor != target[name]).flatten().nonzero().squeeze(1)
        if len(indices):
            changes[name] = (indices, target[name].flatten()[indices])
    return changes


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3_moe"])
def test_weights_change_in_the_middle_in_every_way(
    family: str, tmp_path: Path, make_parallel: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlserve.engine.parallel.sharded_runner._BUCKET_BYTES", 20_000)
    folder = save_model(tmp_path, family)
    two, one = make_parallel(folder), make_engine(folder)
    second, third, fourth = (weights_of(family, seed) for seed in (1, 2, 2))
    for tensor in fourth.values():
        tensor.view(-1)[::7] += 0.25
    fourth = {
        name: fourth["model.embed_tokens.weight" if family == "qwen2" and name == "lm_head.weight" else name]
        for name in fourth
    }
    reference = make_engine(folder)
    outputs = []
    for engine in (two, one):
        for request in _requests(12):
            engine.add(request)
        finished = engine.step() + engine.step() + engine.step()
        assert engine.swap_weights(1, engine.stage_weights(second)) == fingerprint(engine.named_weights())
        finished += engine.step() + engine.step()
        engine.begin_weight_update(2)
        for name in reversed(third):
            engine.update_weights({name: third[name]})
        finished += engine.step()
        reference.load_weights(2, third)
        checksum = fingerprint(reference.named_weights())
        engine.finish_weight_update(checksum)
        assert fingerprint(engine.named_weights()) == checksum
        finished += engine.step() + engine.step()
        reference.load_weights(2, fourth)
        checksum = fingerprint(reference.named_weights())
        changes = _deltas(engine, dict(reference.named_weights()))
        before = fingerprint(engine.named_weights())
        with pytest.raises(WeightsRefusedError, match="the engine keeps version 2"):
            engine.apply_weight_delta(3, 2, changes, checksum + 1)
        assert fingerprint(engine.named_weights()) == before
        engine.apply_weight_delta(3, 2, changes, checksum)
        assert fingerprint(engine.named_weights()) == checksum
        finished += run(engine).values()
        outputs.append({output.request_id: output for output in finished})
    found, expected = outputs
    assert {version for output in found.values() for version in output.samples[0].weight_versions} == {0, 1, 2, 3}
    _assert_same(found, expected)


def test_refused_weights_leave_both_ranks_as_they_were(tmp_path: Path, make_parallel: MakeEngine) -> None:
    folder = save_model(tmp_path, "qwen2")
    engine = make_parallel(folder)
    tied, before = weights_of("qwen2", 1), fingerprint(engine.named_weights())
    untied = tied | {"lm_head.weight": tied["lm_head.weight"] + 1}
    with pytest.raises(WeightsRefusedError, match="model ties the two"):
        engine.load_weights(1, untied)
    with pytest.raises(WeightsRefusedError, match=r"shape \[48, 48\], must be \[96, 48\]"):
        engine.load_weights(1, tied | {"model.embed_tokens.weight": torch.zeros(48, 48)})
    for bucket, checksum, message in (
        (untied, 0, "model ties the two"),
        ({"model.norm.weight": tied["model.norm.weight"]}, 0, "is missing"),
        (tied, 0, "must be 0000000000000000"),
    ):
        engine.begin_weight_update(1)
        engine.update_weights(bucket)
        with pytest.raises(WeightsRefusedError, match=message):
            engine.finish_weight_update(checksum)
        assert (engine.weight_version, fingerprint(engine.named_weights())) == (0, before)
    changes = {"model.norm.weight": (torch.tensor([48]), torch.tensor([1.0]))}
    with pytest.raises(WeightsRefusedError, match="has 48 elements"):
        engine.apply_weight_delta(1, 0, changes, 0)
    _assert_same(run(engine, _requests(6)), run(make_engine(folder), _requests(6)))


def test_memory_is_released_and_restored_in_both_ranks(tmp_path: Path, make_parallel: MakeEngine) -> None:
    folder = save_model(tmp_path, "qwen3")
    engine = make_parallel(folder)
    run(engine, _requests(3))
    engine.release_memory(weights=True, kv_cache=True)
    assert weight_bytes(engine) == 0
    with pytest.raises(WeightsRefusedError, match="memory is released"):
        engine.named_weights()
    assert run(engine, [make_request("early", [1])])["early"].error is not None
    engine.restore_memory()
    engine.load_weights(1, weights_of("qwen3", 1))
    one = make_engine(folder)
    one.load_weights(1, weights_of("qwen3", 1))
    engine.add(_requests(1)[0])
    with pytest.raises(IllegalTransitionError, match="in flight"):
        engine.release_memory()
    run(engine)
    _assert_same(run(engine, _requests(9)), run(one, _requests(9)))
    engine.pause("abort")
    engine.release_memory(kv_cache=True)
    engine.restore_memory()
    engine.resume()
    _assert_same(run(engine, _requests(9)), run(one, _requests(9)))


def test_an_engine_without_weights_takes_its_first_ones(tmp_path: Path, make_parallel: MakeEngine) -> None:
    folder = save_model(tmp_path, "qwen3")
    engine = make_parallel(folder, load_weights=False)
    engine.load_weights(0, weights_of("qwen3", 0))
    _assert_same(run(engine, _requests(6)), run(make_engine(folder), _requests(6)))


def test_what_does_not_fit_is_refused_before_a_process_is_started(tmp_path: Path) -> None:
    folder = save_model(tmp_path, "llama")
    with pytest.raises(UserError, match=r"4 attention heads, .* which does not divide by 3"):
        make_engine(folder, tensor_parallel_size=3)
    with pytest.raises(ConfigurationError, match="must be at least 1"):
        EngineConfig(tensor_parallel_size=0)
    with pytest.raises(ConfigurationError, match="must be false with tensor_parallel_size > 1"):
        EngineConfig(tensor_parallel_size=2, deterministic=True)
    with pytest.raises(ConfigurationError, match="must not be true with tensor_parallel_size > 1"):
        EngineConfig(tensor_parallel_size=2, overlap_scheduling=True)
    with pytest.raises(ConfigurationError, match="must be auto with tensor_parallel_size > 1"):
        EngineConfig(tensor_parallel_size=2, weight_dtype="int8")


def test_a_folder_without_weights_is_an_error_of_the_folder(tmp_path: Path) -> None:
    folder = save_model(tmp_path, "llama")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"neither model\.safetensors"):
        make_engine(folder, tensor_parallel_size=2)
