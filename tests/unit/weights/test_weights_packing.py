"""Packing weights, and finding what was damaged on the way."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlserve.engine.weights.fingerprint import fingerprint, tensor_fingerprint
from rlserve.errors import WeightsRefusedError
from rlserve.weights.offer import Holding
from rlserve.weights.packing import PackedWeights, take_snapshot, tensors_in

TENSORS = {
    "embed.weight": torch.arange(12, dtype=torch.float32).reshape(4, 3),
    "norm.weight": torch.tensor([1.5]),
    "empty": torch.zeros(0, 2),
}


def unpack(packed: PackedWeights) -> dict[str, torch.Tensor]:
    """As a receiver does, in memory of its own."""
    packed.check()
    return dict(tensors_in(packed.payload.clone(), packed.manifest.entries))


def test_round_trip_keeps_every_bit_and_name() -> None:
    snapshot = take_snapshot(3, TENSORS, torch.float32)
    restored = unpack(snapshot.pack())
    assert list(restored) == list(TENSORS)
    assert all(torch.equal(restored[name], TENSORS[name]) for name in TENSORS)
    assert snapshot.fingerprint == fingerprint(restored.items()) == fingerprint(TENSORS.items())


def test_a_snapshot_casts_to_the_engines_type() -> None:
    restored = unpack(take_snapshot(0, {"w": torch.tensor([1.0, 1.0009765625])}, torch.bfloat16).pack())
    assert restored["w"].dtype is torch.bfloat16
    assert restored["w"].tolist() == [1.0, 1.0]


def test_a_snapshot_stays_as_it_was_while_the_trainer_steps() -> None:
    weight = torch.tensor([1.0, 2.0])
    snapshot = take_snapshot(0, {"w": weight}, torch.float32)
    weight.add_(1.0)
    assert unpack(snapshot.pack())["w"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16, torch.float64])
def test_a_snapshot_has_the_bits_that_pytorch_makes_and_their_fingerprint(
    given: torch.dtype, dtype: torch.dtype
) -> None:
    tensors = {
        "large": 3 * torch.randn(70_001, generator=torch.Generator().manual_seed(0)),
        "strided": torch.randn(40, 70, generator=torch.Generator().manual_seed(1)).t(),
        "odd": torch.tensor(
            [0.0, -0.0, torch.inf, -torch.inf, 1e-40, -1e-45, 3.3895314e38, 1.00390625, 1.01171875] * 9
        ),
        "none": torch.zeros(0, 4),
    }
    tensors = {name: tensor.to(given) for name, tensor in tensors.items()}
    snapshot = take_snapshot(0, tensors, dtype)
    expected = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    found = unpack(snapshot.pack())
    bits = torch.int32 if dtype is torch.float32 else torch.int16
    for name, tensor in expected.items():
        assert torch.equal(found[name].view(bits), tensor.contiguous().view(bits)), name
    assert snapshot.fingerprint == fingerprint(expected.items())


def test_without_compiled_kernels_a_snapshot_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {"w": torch.randn(3000, generator=torch.Generator().manual_seed(0))}
    compiled = take_snapshot(0, tensors, torch.bfloat16)
    monkeypatch.setattr("rlserve.engine.weights.fingerprint.has_compiled_sums", lambda: False)
    plain = take_snapshot(0, tensors, torch.bfloat16)
    assert torch.equal(plain.payload, compiled.payload)
    assert plain.fingerprint == compiled.fingerprint


def test_no_number_stays_no_number() -> None:
    strange = torch.tensor([0x7F800001, 0x7FFFFFFF, -0x00000001, 0x7FC00000], dtype=torch.int32).view(torch.float32)
    found = unpack(take_snapshot(0, {"w": torch.cat([torch.ones(61), strange])}, torch.bfloat16).pack())["w"]
    assert found.isnan().tolist() == [False] * 61 + [True] * 4


def test_a_damaged_delta_is_refused_before_it_is_decoded() -> None:
    sent = take_snapshot(7, TENSORS, torch.float32).pack_delta(
        torch.arange(30, dtype=torch.uint8), Holding(version=6, fingerprint=1)
    )
    sent.check()
    damaged = sent.payload.clone()
    damaged[5] ^= 1
    with pytest.raises(WeightsRefusedError, match=r"version 7 .* wrong checksum"):
        replace(sent, payload=damaged).check()


@given(
    values=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=2, max_size=40),
    position=st.integers(0, 1000),
    bit=st.integers(0, 30),
)
@settings(max_examples=200, deadline=None)
def test_fingerprint_finds_any_flipped_bit(values: list[int], position: int, bit: int) -> None:
    tensor = torch.tensor(values, dtype=torch.int32)
    changed = tensor.clone()
    changed[position % len(values)] ^= 1 << bit
    assert tensor_fingerprint(tensor) != tensor_fingerprint(changed)


def test_fingerprint_knows_positions_names_shapes_and_types() -> None:
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0])
    base = fingerprint([("w", weight)])
    assert base != fingerprint([("w", weight.flip(0))])
    assert base != fingerprint([("v", weight)])
    assert base != fingerprint([("w", weight.reshape(2, 2))])
    assert base != fingerprint([("w", weight.to(torch.bfloat16))])
    assert base != fingerprint([("w", weight), ("v", weight)])


def test_fingerprint_does_not_depend_on_the_order_of_tensors_or_on_strides() -> None:
    a, b = torch.randn(3, 5), torch.randn(4)
    assert fingerprint([("a", a), ("b", b)]) == fingerprint([("b", b), ("a", a)])
    assert tensor_fingerprint(a.t().contiguous().t()) == tensor_fingerprint(a)
