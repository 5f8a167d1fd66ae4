"""The paths of older processors, compiled and run on this one: without products of bfloat16, and without AVX-512."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from instruction_sets import OLDER, instructions_up_to, only_on_x86

from rlserve.engine.weights.fingerprint import fingerprint_of_sum, tensor_fingerprint
from rlserve.errors import UserError
from rlserve.native import library
from rlserve.native.copying import copy_all
from rlserve.native.library import load_library
from rlserve.native.panels import get_rows, panels_of
from rlserve.native.program import Projection, has_fast_products

NUM_OUTPUTS, NUM_INPUTS, NUM_ROWS = 200, 130, 150
ROUNDING = 2e-3
"""Of a sum of products whose size is about one."""

pytestmark = only_on_x86


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """As many threads after each test as before."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=OLDER)
def older(request: pytest.FixtureRequest) -> Iterator[str]:
    """The kernels of an older processor."""
    with instructions_up_to(request.param):
        yield request.param


def _numbers(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def _multiply(x_TK: torch.Tensor, *, is_int8: bool = False) -> torch.Tensor:
    weight = _numbers(NUM_OUTPUTS, NUM_INPUTS, seed=1) / NUM_INPUTS**0.5
    projection = Projection(panels_of(weight), NUM_OUTPUTS, _numbers(NUM_OUTPUTS, seed=2), is_int8=is_int8)
    projection.weight_changed()
    return projection.multiply(x_TK, torch.full((len(x_TK), NUM_OUTPUTS), torch.nan))


@pytest.mark.parametrize("is_int8", [False, True])
def test_products_are_those_of_the_newest_instructions_but_for_rounding(is_int8: bool) -> None:
    x = _numbers(NUM_ROWS, NUM_INPUTS, seed=3)
    newest = _multiply(x, is_int8=is_int8)
    for name in OLDER:
        with instructions_up_to(name):
            assert (_multiply(x, is_int8=is_int8) - newest).abs().max() <= ROUNDING


def test_copies_have_the_bits_and_the_sums_of_any_processor(older: str) -> None:
    source = torch.cat([torch.randn(5000, generator=torch.Generator().manual_seed(5)), torch.full((40,), 1e-40)])
    target = torch.empty(len(source) + 32, dtype=torch.bfloat16)
    target = target[-target.data_ptr() % 64 // 2 :][: len(source)]
    (total,) = copy_all([(source, target)])
    assert torch.equal(target.view(torch.int16), source.bfloat16().view(torch.int16))
    assert fingerprint_of_sum(total) == tensor_fingerprint(source.bfloat16())


def test_a_row_has_the_same_bits_in_any_company_and_on_any_number_of_threads(older: str) -> None:
    x = _numbers(NUM_ROWS, NUM_INPUTS, seed=4)
    whole = _multiply(x)
    for num_threads in (1, 2):
        torch.set_num_threads(num_threads)
        for first, end in ((0, 1), (5, 12), (13, 29), (31, 150), (149, 150)):
            assert torch.equal(_multiply(x[first:end]), whole[first:end])


def test_products_of_bfloat16_are_made_here_and_not_by_torch(older: str) -> None:
    assert has_fast_products(torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_come_out_of_panels_as_they_went_in(older: str, dtype: torch.dtype) -> None:
    rows = _numbers(75, 38, seed=5).to(dtype)
    assert torch.equal(get_rows(panels_of(rows), 0, 75), rows)


def test_a_name_that_is_not_known_is_refused() -> None:
    with (
        instructions_up_to("sse9"),
        pytest.raises(UserError, match="RLSERVE_MAX_CPU_ISA=sse9 is not known: use avx2, avx512, avx512_bf16"),
    ):
        load_library()


def test_a_processor_that_is_not_x86_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library.platform, "machine", lambda: "aarch64")
    with instructions_up_to("avx2"), pytest.raises(UserError, match="for x86 processors; unset it on aarch64"):
        load_library()
