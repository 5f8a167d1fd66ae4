"""Products with packed weights: right, the same bits in any company and on any number of threads."""

from __future__ import annotations

import pytest
import torch

from rlserve.native.panels import panels_of
from rlserve.native.program import Projection, cap

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-3}
DTYPES = [torch.float32, torch.bfloat16]


def _numbers(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _projection(weight_NK: torch.Tensor, bias_N: torch.Tensor | None = None) -> Projection:
    projection = Projection(panels_of(weight_NK), len(weight_NK), bias_N)
    projection.weight_changed()
    return projection


def _multiply(projection: Projection, x_TK: torch.Tensor) -> torch.Tensor:
    return projection.multiply(x_TK, torch.full((len(x_TK), projection.num_outputs), torch.nan))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("num_outputs", [1, 31, 32, 33, 200])
@pytest.mark.parametrize("num_inputs", [2, 64, 130])
@pytest.mark.parametrize("num_rows", [1, 3, 14, 15, 29, 300])
def test_products_are_right(
    num_rows: int, num_inputs: int, num_outputs: int, has_bias: bool, dtype: torch.dtype
) -> None:
    weight = _numbers(num_outputs, num_inputs, dtype=dtype)
    bias = _numbers(num_outputs, dtype=dtype, seed=1) if has_bias else None
    x = _numbers(num_rows, num_inputs, dtype=dtype, seed=2)
    exact = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    found = _multiply(_projection(weight, bias), x)
    assert (found - exact).abs().max() <= TOLERANCE[dtype] * exact.abs().max().clamp(min=1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_in_any_company_and_on_any_number_of_threads(dtype: torch.dtype) -> None:
    x = _numbers(300, 96, dtype=dtype)
    projection = _projection(_numbers(120, 96, dtype=dtype, seed=1))
    whole = _multiply(projection, x)
    for num_threads in (1, 2, 3):
        torch.set_num_threads(num_threads)
        for first, end in ((0, 1), (5, 12), (13, 29), (31, 300), (299, 300)):
            assert torch.equal(_multiply(projection, x[first:end]), whole[first:end])


def test_no_rows_are_no_work() -> None:
    assert _multiply(_projection(_numbers(40, 8, dtype=torch.float32)), torch.empty(0, 8)).shape == (0, 40)


def test_numbers_are_capped() -> None:
    numbers = _numbers(3, 37, dtype=torch.float32) * 50
    expected = 30 * torch.tanh(numbers / 30)
    assert torch.allclose(cap(numbers, 30.0), expected, atol=1e-4)
