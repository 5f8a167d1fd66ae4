"""New weights in buckets and as changed elements: in place at once, or not at all."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from engine_builders import BOTH_WAYS, VOCAB_SIZE, make_engine, make_request, run, save_model, weights_of

from rlserve.engine import Engine
from rlserve.engine.core.weight_versions import WeightChanges
from rlserve.engine.weights.fingerprint import fingerprint
from rlserve.errors import IllegalTransitionError, WeightsRefusedError

pytestmark = BOTH_WAYS

PROMPT = tuple(random.Random(5).choices(range(VOCAB_SIZE), k=20))
NEXT = weights_of("qwen3", 1)
CHECKSUM = fingerprint(NEXT.items())


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return make_engine(save_model(tmp_path / "model", "qwen3", seed=0))


def _buckets(tensors: dict[str, torch.Tensor], size: int = 7) -> list[dict[str, torch.Tensor]]:
    names = list(tensors)
    random.Random(0).shuffle(names)
    return [{name: tensors[name] for name in names[start : start + size]} for start in range(0, len(names), size)]


def _has(engine: Engine, seed: int) -> bool:
    expected = weights_of("qwen3", seed)
    return all(torch.equal(tensor, expected[name]) for name, tensor in engine.named_weights())


def _changes(engine: Engine, target: dict[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """What a trainer sends that compares each element with the last published version."""
    changes = {}
    for name, tensor in engine.named_weights():
        indices = (tensor != target[name]).flatten().nonzero().squeeze(1)
        if len(indices):
            changes[name] = (indices, target[name].flatten()[indices])
    return changes


def _few_changed(num_changed: int) -> dict[str, torch.Tensor]:
    """The weights of seed 0 with a few elements of each tensor changed."""
    generator = torch.Generator().manual_seed(num_changed)
    target = {name: tensor.clone() for name, tensor in weights_of("qwen3", 0).items()}
    for tensor in target.values():
        places = torch.randperm(tensor.numel(), generator=generator)[:num_changed]
        tensor.view(-1)[places] += 0.5
    return target


def test_buckets_are_staged_while_the_old_version_serves_and_swapped_in_at_once(engine: Engine) -> None:
    request = make_request("0", PROMPT, max_tokens=20, seed=1)
    undisturbed = run(engine, [request])["0"].samples[0]
    engine.add(request)
    engine.begin_weight_update(4)
    for bucket in _buckets(NEXT):
        assert engine.step() == []
        engine.update_weights(bucket)
        for tensor in bucket.values():
            assert tensor.data_ptr() not in [view.data_ptr() for _, view in engine.named_weights()]
        assert (engine.weight_version, _has(engine, 0)) == (0, True)

    engine.finish_weight_update(CHECKSUM)

    assert (engine.weight_version, _has(engine, 1)) == (4, True)
    (sample,) = run(engine)["0"].samples
    (_, _, swapped_at), (version, _, end) = sample.weight_spans
    assert (version, end) == (4, 20)
    assert sample.token_ids[:swapped_at] == undisturbed.token_ids[:swapped_at]
    assert sample.token_ids[swapped_at:] != undisturbed.token_ids[swapped_at:]


def test_what_is_staged_is_a_copy(engine: Engine) -> None:
    sent = {name: tensor.clone() for name, tensor in NEXT.items()}
    engine.begin_weight_update(1)
    engine.update_weights(sent)
    for tensor in sent.values():
        tensor.zero_()
    engine.finish_weight_update(CHECKSUM)
    assert _has(engine, 1)


def test_an_abandoned_update_leaves_nothing(engine: Engine) -> None:
    engine.begin_weight_update(9)
    engine.update_weights(_buckets(NEXT)[0])
    engine.abandon_weight_update()
    assert (engine.weight_version, _has(engine, 0)) == (0, True)
    for call in (
        engine.abandon_weight_update,
        lambda: engine.update_weights({}),
        lambda: engine.finish_weight_update(0),
    ):
        with pytest.raises(WeightsRefusedError, match="no update was begun"):
            call()
    engine.load_weights(1, NEXT)
    assert (engine.weight_version, _has(engine, 1)) == (1, True)


@pytest.mark.parametrize(
    ("checksum", "num_buckets", "message"),
    [(CHECKSUM, 2, "is missing"), (CHECKSUM + 1, 100, f"checksum {CHECKSUM:016x}, must be {CHECKSUM + 1:016x}")],
)
def test_a_refused_swap_changes_nothing_and_closes_the_update(
    engine: Engine, checksum: int, num_buckets: int, message: str
) -> None:
    engine.begin_weight_update(2)
    for bucket in _buckets(NEXT)[:num_buckets]:
        engine.update_weights(bucket)
    with pytest.raises(WeightsRefusedError, match=message):
        engine.finish_weight_update(checksum)
    assert (engine.weight_version, _has(engine, 0)) == (0, True)
    engine.begin_weight_update(2)
    engine.update_weights(NEXT)
    engine.finish_weight_update(CHECKSUM)
    assert (engine.weight_version, _has(engine, 1)) == (2, True)


@pytest.mark.parametrize(
    ("bucket", "message"),
    [
        ({"what.weight": torch.zeros(1)}, "what.weight is unknown"),
        ({"model.norm.weight": torch.zeros(3)}, r"has shape \[3\], must be \[48\]"),
        ({"lm_head.weight": NEXT["lm_head.weight"]}, "lm_head.weight was sent already"),
    ],
)
def test_a_bad_bucket_is_left_out_and_the_update_goes_on(
    engine: Engine, bucket: dict[str, torch.Tensor], message: str
) -> None:
    engine.begin_weight_update(2)
    head = {"lm_head.weight": NEXT["lm_head.weight"]}
    engine.update_weights(head)
    with pytest.raises(WeightsRefusedError, match=message):
        engine.update_weights({"model.embed_tokens.weight": torch.zeros_like(NEXT["lm_head.weight"])} | bucket)
    engine.update_weights({name: tensor for name, tensor in NEXT.items() if name not in head})
    engine.finish_weight_update(CHECKSUM)
    assert _has(engine, 1)


def test_one_way_at_a_time_and_never_back(engine: Engine) -> None:
    engine.load_weights(5, NEXT)
    with pytest.raises(WeightsRefusedError, match="version 4, but the engine has 5"):
        engine.begin_weight_update(4)
    engine.begin_weight_update(6)
    for call in (
        lambda: engine.begin_weight_update(7),
        lambda: engine.load_weights(7, NEXT),
        lambda: engine.apply_weight_delta(7, 5, {}, CHECKSUM),
    ):
        with pytest.raises(WeightsRefusedError, match="version 6 is arriving, finish or abandon it first"):
            call()
    with pytest.raises(IllegalTransitionError, match="a weight update is open"):
        engine.release_memory(weights=True)
    engine.abandon_weight_update()
    assert (engine.weight_version, _has(engine, 1)) == (5, True)


def test_a_tied_head_may_come_in_a_bucket(tmp_path: Path) -> None:
    engine = make_engine(save_model(tmp_path, "qwen2"))
    tied = weights_of("qwen2", 1)
    engine.begin_weight_update(1)
    for bucket in _buckets(tied, 3):
        engine.update_weights(bucket)
    engine.finish_weight_update(
        fingerprint((name, tensor) for name, tensor in tied.items() if name != "lm_head.weight")
    )
    assert engine.weight_version == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_changed_elements_give_the_weights_and_tokens_of_a_whole_update(tmp_path: Path, dtype: str) -> None:
    folder = save_model(tmp_path, "qwen3", seed=0)
    engine, whole = make_engine(folder, dtype=dtype), make_engine(folder, dtype=dtype)
    target = {name: tensor.to(getattr(torch, dtype)) for name, tensor in _few_changed(5).items()}
    whole.load_weights(3, target)
    checksum = fingerprint(whole.named_weights())
    run(engine, [make_request("fills the prefix cache", PROMPT)])

    engine.apply_weight_delta(3, 0, _changes(engine, target), checksum)

    assert engine.weight_version == 3
    assert fingerprint(engine.named_weights()) == checksum
    request = make_request("0", PROMPT, max_tokens=20)
    assert run(engine, [request])["0"] == run(whole, [request])["0"], "no old prefix is found either"


def test_changes_to_another_base_or_with_another_result_are_taken_back(engine: Engine) -> None:
    target = _few_changed(9)
    changes, checksum = _changes(engine, target), fingerprint(target.items())
    before = {name: tensor.clone() for name, tensor in engine.named_weights()}
    with pytest.raises(WeightsRefusedError, match="changes to version 1, but the engine has version 0"):
        engine.apply_weight_delta(2, 1, changes, checksum)
    damaged = dict(changes)
    name, (indices, values) = damaged.popitem()
    damaged[name] = (indices, values + 1)
    with pytest.raises(WeightsRefusedError, match="the engine keeps version 0"):
        engine.apply_weight_delta(2, 0, damaged, checksum)
    assert engine.weight_version == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in engine.named_weights())
    engine.apply_weight_delta(2, 0, changes, checksum)
    assert engine.weight_version == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"what.weight": (torch.tensor([0]), torch.tensor([1.0]))}, "what.weight is unknown"),
        ({"model.norm.weight": (torch.tensor([48]), torch.tensor([1.0]))}, "has 48 elements, and the indices"),
        ({"model.norm.weight": (torch.tensor([-1]), torch.tensor([1.0]))}, "has 48 elements, and the indices"),
        ({"model.norm.weight": (torch.tensor([0, 1]), torch.tensor([1.0]))}, "as many values as indices"),
        ({"model.norm.weight": (torch.tensor([0.0]), torch.tensor([1.0]))}, "as many values as indices"),
    ],
)
def test_changes_that_do_not_fit_are_refused(engine: Engine, changes: WeightChanges, message: str) -> None:
    with pytest.raises(WeightsRefusedError, match=message):
        engine.apply_weight_delta(1, 0, changes, 0)
    assert (engine.weight_version, _has(engine, 0)) == (0, True)


def test_an_engine_without_weights_takes_buckets_but_no_changes(tmp_path: Path) -> None:
    engine = make_engine(save_model(tmp_path, "qwen3"), load_weights=False)
    with pytest.raises(WeightsRefusedError, match="the engine has no weights"):
        engine.apply_weight_delta(1, 0, {}, 0)
    engine.begin_weight_update(0)
    engine.update_weights(NEXT)
    engine.finish_weight_update(CHECKSUM)
    assert run(engine, [make_request("0", PROMPT)])["0"].finished
