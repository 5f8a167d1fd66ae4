"""The fingerprint is the same number whoever adds it up: compiled code, or tensor operations as on a GPU."""

from __future__ import annotations

import pytest
import torch

from rlserve.engine.weights import fingerprint
from rlserve.engine.weights.fingerprint import tensor_fingerprint


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.float64])
@pytest.mark.parametrize("size", [0, 1, 1000, 2**16, 2**20 + 2**16 + 5])
def test_compiled_and_plain_sums_agree(size: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = (50 * torch.randn(size, generator=torch.Generator().manual_seed(0))).to(dtype)
    assert (fingerprint._compiled_sum(torch.int16) is None) == (fingerprint._compiled_sum(torch.int32) is None)
    found = tensor_fingerprint(tensor)
    monkeypatch.setattr(fingerprint, "_compiled_sum", lambda dtype: None)
    assert tensor_fingerprint(tensor) == found


def test_the_sum_is_what_it_is_said_to_be() -> None:
    numbers = [5, -3, 2**31 - 1, -(2**31)]
    expected = sum(number * fingerprint._MULTIPLIER * (2 * index + 1) for index, number in enumerate(numbers)) % (2**64)
    assert tensor_fingerprint(torch.tensor(numbers, dtype=torch.int32)) == expected
