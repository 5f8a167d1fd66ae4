"""The sums of fingerprints by Triton against plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from triton_device import DEVICE

from rlserve.engine.weights import device_sums
from rlserve.engine.weights.device_sums import weighted_sums
from rlserve.engine.weights.fingerprint import _sum


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_sums, "_SPAN", 64)
    monkeypatch.setattr(device_sums, "_BLOCK", 16)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_sums_are_those_of_pytorch_whatever_the_sizes(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    limits = torch.iinfo(dtype)
    tensors = [
        torch.randint(limits.min, limits.max, (size,), dtype=dtype, generator=generator).to(DEVICE)
        for size in (1, 0, 15, 64, 65, 200, 0)
    ]
    tensors.append(tensors[5][3:77])  # in the middle of another, aligned to nothing
    assert weighted_sums(tensors) == [_sum(tensor) % 2**64 for tensor in tensors]


def test_of_nothing_there_is_no_sum() -> None:
    assert weighted_sums([torch.zeros(0, dtype=torch.int16, device=DEVICE)] * 2) == [0, 0]
