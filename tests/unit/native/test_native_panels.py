"""Matrices in panels: what goes in comes out, and nothing else is touched."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlserve.engine.weights.fingerprint import fingerprint_of_sum, tensor_fingerprint
from rlserve.native.panels import empty_panels, get_rows, panels_of, places_of, put_all, put_rows

DTYPES = [torch.float32, torch.bfloat16]


def _numbers(num_rows: int, num_columns: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(num_rows * num_columns).view(num_rows, num_columns).remainder(251).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_panel_has_32_rows_with_neighbours_together(dtype: torch.dtype) -> None:
    unit = 1 if dtype is torch.float32 else 2
    rows = _numbers(70, 44, dtype)
    panels = panels_of(rows)
    assert panels.shape == (3, 44 // unit, 32, unit)
    for row, column in ((0, 0), (31, 43), (32, 1), (69, 20)):
        assert panels[row // 32, column // unit, row % 32, column % unit] == rows[row, column]


@given(
    sizes=st.lists(st.integers(1, 100), min_size=1, max_size=5),
    num_pairs=st.integers(1, 40),
    dtype=st.sampled_from(DTYPES),
    num_threads=st.integers(1, 3),
)
@settings(max_examples=200, deadline=None)
def test_parts_come_out_as_they_went_in(sizes: list[int], num_pairs: int, dtype: torch.dtype, num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    whole = _numbers(sum(sizes), 2 * num_pairs, dtype)
    panels = empty_panels(*whole.shape, dtype)
    firsts = [sum(sizes[:index]) for index in range(len(sizes))]
    for part in reversed(range(len(sizes))):
        rows = whole[firsts[part] : firsts[part] + sizes[part]]
        (total,) = put_all([(panels, firsts[part], rows)])
        assert fingerprint_of_sum(total) == tensor_fingerprint(rows)
    assert torch.equal(get_rows(panels, 0, len(whole)), whole)
    for first, size in zip(firsts, sizes, strict=True):
        assert torch.equal(get_rows(panels, first, size), whole[first : first + size])
        indices = torch.arange(size * whole.shape[1]).flip(0)
        assert torch.equal(
            panels.flatten()[places_of(panels, first, indices)], whole[first : first + size].flatten()[indices]
        )


def test_rows_are_rounded_to_the_type_of_the_panels_and_may_lie_anyhow() -> None:
    columns = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    panels = empty_panels(40, 6, torch.bfloat16)
    put_rows(panels, 0, columns.t())
    assert torch.equal(get_rows(panels, 0, 40), columns.t().to(torch.bfloat16))


def test_released_panels_have_nothing_to_show() -> None:
    panels = panels_of(torch.zeros(40, 6))
    panels.untyped_storage().resize_(0)
    with pytest.raises(AssertionError, match="released"):
        get_rows(panels, 0, 40)
