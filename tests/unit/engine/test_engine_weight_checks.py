"""What cannot be a weight is refused before the first write; what raises in the middle leaves an engine that serves
nothing until a whole version is there."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_builders import BOTH_WAYS, VOCAB_SIZE, make_engine, make_request, run, save_model, weights_of

from rlserve.engine import Engine
from rlserve.engine.decoder import parameters
from rlserve.engine.weights.fingerprint import fingerprint
from rlserve.errors import WeightsRefusedError

pytestmark = BOTH_WAYS

PROMPT = tuple(random.Random(5).choices(range(VOCAB_SIZE), k=20))
NEXT = weights_of("qwen3", 1)
CHECKSUM = fingerprint(NEXT.items())
NORM = "model.norm.weight"
BAD: dict[str, tuple[Any, str]] = {
    "int": (torch.ones(48, dtype=torch.int32), "got torch.int32"),
    "bool": (torch.ones(48, dtype=torch.bool), "got torch.bool"),
    "complex": (torch.ones(48, dtype=torch.complex64), "got torch.complex64"),
    "float8": (torch.ones(48).to(torch.float8_e4m3fn), "got torch.float8_e4m3fn"),
    "quantised": (torch.quantize_per_tensor(torch.ones(48), 1.0, 0, torch.qint8), "got torch.qint8"),
    "numpy": (np.ones(48, dtype=np.float32), "must be a torch tensor, got numpy.ndarray"),
    "list": ([1.0] * 48, "must be a torch tensor, got list"),
    "meta": (torch.empty(48, device="meta"), "on the device meta"),
    "sparse": (torch.ones(48).to_sparse(), "must be dense, got the layout torch.sparse_coo"),
    "nested": (torch.nested.nested_tensor([torch.ones(48)]), "must be dense, got the layout nested"),
}


class UnreadableTensor(torch.Tensor):
    """Passes every check, and raises when it is copied."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.copy_, torch.Tensor.to):
            raise OSError("the other process has gone")
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return make_engine(save_model(tmp_path / "model", "qwen3", seed=0))


def _has(engine: Engine, seed: int) -> bool:
    expected = weights_of("qwen3", seed)
    return all(torch.equal(tensor, expected[name]) for name, tensor in engine.named_weights())


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_a_weight_is_refused_by_name_in_every_way(engine: Engine, kind: str) -> None:
    value, message = BAD[kind]
    engine.begin_weight_update(1)
    with pytest.raises(WeightsRefusedError, match=f"{NORM} .*{message}"):
        engine.update_weights({"lm_head.weight": NEXT["lm_head.weight"], NORM: value})
    engine.abandon_weight_update()
    with pytest.raises(WeightsRefusedError, match=f"{NORM} .*{message}"):
        engine.load_weights(1, NEXT | {NORM: value})
    with pytest.raises(WeightsRefusedError, match=f"{NORM} .*{message}"):
        engine.apply_weight_delta(1, 0, {NORM: (torch.arange(48), value)}, 0)
    assert (engine.weight_version, _has(engine, 0)) == (0, True)
    assert run(engine, [make_request("0", PROMPT)])["0"].finished


@pytest.mark.parametrize("version", [1.5, 2**31, 2**63, True, -1, "1", None, np.int64(1), torch.tensor(1)])
def test_a_version_that_is_no_plain_number_in_range_is_refused_before_anything_is_written(
    engine: Engine, version: Any
) -> None:
    calls: list[Callable[[], None]] = [
        lambda: engine.load_weights(version, NEXT),
        lambda: engine.begin_weight_update(version),
        lambda: engine.apply_weight_delta(version, 0, {}, CHECKSUM),
        lambda: engine.apply_weight_delta(1, version, {}, CHECKSUM),
    ]
    for call in calls:
        with pytest.raises(WeightsRefusedError, match=r"ersion must be a whole number from 0 to 2147483647, got"):
            call()
    assert (engine.weight_version, _has(engine, 0)) == (0, True)


def test_what_is_no_mapping_and_what_is_no_checksum_is_refused(engine: Engine) -> None:
    with pytest.raises(WeightsRefusedError, match="mapping of names to tensors, got list"):
        engine.load_weights(1, list(NEXT.items()))  # type: ignore[arg-type]
    with pytest.raises(WeightsRefusedError, match="names must be strings, got 7"):
        engine.load_weights(1, {7: torch.ones(1)})  # type: ignore[dict-item]
    for change in (
        torch.ones(3),
        (torch.arange(3),),
        (torch.empty(3, dtype=torch.int64, device="meta"), torch.ones(3)),
    ):
        with pytest.raises(WeightsRefusedError, match=NORM):
            engine.apply_weight_delta(1, 0, {NORM: change}, CHECKSUM)  # type: ignore[dict-item]
    engine.begin_weight_update(1)
    engine.update_weights(NEXT)
    with pytest.raises(WeightsRefusedError, match="checksum must be a whole number, got 'abc'"):
        engine.finish_weight_update("abc")  # type: ignore[arg-type]
    engine.finish_weight_update(CHECKSUM)
    assert (engine.weight_version, _has(engine, 1)) == (1, True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_floating_type_in_any_order_of_memory_is_taken(engine: Engine, dtype: torch.dtype) -> None:
    def scattered(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(dtype).repeat_interleave(2, dim=-1)[..., ::2]

    sent = {name: scattered(tensor).requires_grad_() for name, tensor in NEXT.items()}
    assert not any(tensor.is_contiguous() for tensor in sent.values())
    engine.load_weights(1, sent)
    assert all(torch.equal(tensor, sent[name].float()) for name, tensor in engine.named_weights())


def test_a_tied_head_may_come_in_another_type_and_with_missing_values(tmp_path: Path) -> None:
    engine = make_engine(save_model(tmp_path, "qwen2"))
    tied = {name: tensor.bfloat16() for name, tensor in weights_of("qwen2", 1).items()}
    tied["model.embed_tokens.weight"][0, 0] = torch.nan
    tied["lm_head.weight"] = tied["model.embed_tokens.weight"].float()
    engine.load_weights(1, tied)
    tied["lm_head.weight"][1, 1] += 1
    with pytest.raises(WeightsRefusedError, match="ties the two"):
        engine.load_weights(2, tied)


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_a_copy_that_raises_in_the_middle_leaves_an_engine_that_serves_nothing(tmp_path: Path, backend: str) -> None:
    engine = make_engine(save_model(tmp_path, "qwen3", seed=0), attention_backend=backend)
    request = make_request("in flight", PROMPT, max_tokens=12, seed=3)
    engine.add(request)
    for _ in range(4):
        engine.step()
    names = [name for name, _ in engine.named_weights()]
    unreadable = NEXT | {names[8]: NEXT[names[8]].as_subclass(UnreadableTensor)}

    with pytest.raises(OSError, match="the other process has gone"):
        engine.load_weights(1, unreadable)

    for _ in range(2):
        with pytest.raises(WeightsRefusedError, match="failed in the middle; load a whole version, or abort the 1 req"):
            engine.step()
    engine.add(make_request("new", PROMPT))
    with pytest.raises(WeightsRefusedError, match="changes to version 0, but the engine has no weights"):
        engine.apply_weight_delta(1, 0, {}, 0)
    engine.load_weights(1, NEXT)
    assert (engine.weight_version, _has(engine, 1)) == (1, True)
    outputs = run(engine)
    assert outputs["new"].error == "the engine has no weights: load a whole version first"
    assert outputs["in flight"].samples[0].weight_versions == (0,) * 4 + (1,) * 8


def test_requests_in_flight_may_be_aborted_after_a_failed_update(engine: Engine) -> None:
    engine.add(make_request("0", PROMPT))
    engine.step()
    engine.step()
    with pytest.raises(OSError, match="gone"):
        engine.load_weights(1, NEXT | {NORM: NEXT[NORM].as_subclass(UnreadableTensor)})
    (aborted,) = engine.abort(["0"])
    assert aborted.samples[0].weight_versions[0] == 0
    assert engine.step() == []
    assert not engine.has_work
    engine.check_integrity()


def _fail_after(num_calls: int, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    """The method raises from then on."""
    real, calls = getattr(owner, name), iter(range(num_calls))

    def failing(*arguments: Any) -> Any:
        if next(calls, None) is None:
            raise MemoryError("no room")
        return real(*arguments)

    monkeypatch.setattr(owner, name, failing)


def test_a_swap_that_raises_in_the_middle_counts_as_not_loaded(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.begin_weight_update(2)
    engine.update_weights(NEXT)
    with monkeypatch.context() as patched:
        _fail_after(0, patched, parameters, "put_weights")
        with pytest.raises(MemoryError):
            engine.finish_weight_update(CHECKSUM)
    assert "no weights" in (run(engine, [make_request("0", PROMPT)])["0"].error or "")
    engine.begin_weight_update(2)
    engine.update_weights(NEXT)
    engine.finish_weight_update(CHECKSUM)
    assert (engine.weight_version, _has(engine, 1)) == (2, True)
    assert run(engine, [make_request("0", PROMPT)])["0"].finished


def test_changes_that_raise_in_the_middle_count_as_not_loaded_and_are_not_taken_back_later(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {name: (torch.arange(3), torch.full((3,), 9.0)) for name, _ in engine.named_weights()}
    with monkeypatch.context() as patched:
        _fail_after(8, patched, engine._runner._parameters, "change")
        with pytest.raises(MemoryError):
            engine.apply_weight_delta(2, 0, changes, 0)
    assert "no weights" in (run(engine, [make_request("0", PROMPT)])["0"].error or "")
    engine.load_weights(0, NEXT)
    with pytest.raises(WeightsRefusedError, match="the engine keeps version 0"):
        engine.apply_weight_delta(2, 0, changes, 0)
    assert _has(engine, 1), "what the failed changes had overwritten does not come back"
    assert run(engine, [make_request("0", PROMPT)])["0"].finished


def test_a_bucket_whose_copying_raises_ends_the_update_and_nothing_else(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.begin_weight_update(2)
    with monkeypatch.context() as patched:
        _fail_after(8, patched, engine._runner._parameters, "stage")
        with pytest.raises(MemoryError):
            engine.update_weights(NEXT)
    assert (engine.weight_version, _has(engine, 0)) == (0, True)
    with pytest.raises(WeightsRefusedError, match="no update was begun"):
        engine.update_weights({})
    engine.begin_weight_update(2)
    engine.update_weights(NEXT)
    engine.finish_weight_update(CHECKSUM)
    assert (engine.weight_version, _has(engine, 1)) == (2, True)
