"""Matrices in panels: the order in which products read their weights, see ``linear.h``.

    [N, K] ──put_rows──► [P, K / U, 32, U] ──get_rows──► [N, K]

A panel has 32 rows, and the last one may have some that nobody asks for. U neighbours of a row stay together, one of
float32 and two of bfloat16, so K is a multiple of U.

Legend: N rows, K columns, P panels; n some of the rows.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch

from rlserve.native.huge_pages import advise_huge_pages
from rlserve.native.library import load_library

_PANEL = 32
_UNITS = {torch.float32: 1, torch.bfloat16: 2}
_CONVERTED_AT_ONCE = 2**24
"""Elements, of rows that come in another type."""


def empty_panels(num_rows: int, num_columns: int, dtype: torch.dtype) -> torch.Tensor:
    """Panels [P, K / U, 32, U] for a matrix [N, K] of float32 or bfloat16; they may hold anything."""
    unit = _UNITS[dtype]
    assert num_columns % unit == 0
    panels = torch.empty(-(-num_rows // _PANEL), num_columns // unit, _PANEL, unit, dtype=dtype)
    advise_huge_pages(panels)
    return panels


def panels_of(rows_NK: torch.Tensor) -> torch.Tensor:
    """New panels of a matrix."""
    num_rows, num_columns = rows_NK.shape
    panels = empty_panels(num_rows, num_columns, rows_NK.dtype)
    put_rows(panels, 0, rows_NK)
    return panels


def put_rows(panels: torch.Tensor, first_row: int, rows_nK: torch.Tensor) -> None:
    """Copy rows, of any type and anywhere, into the panels, from ``first_row`` on."""
    put_all([(panels, first_row, rows_nK)])


def put_all(copies: Sequence[tuple[torch.Tensor, int, torch.Tensor]]) -> list[int]:
    """Do what :meth:`put_rows` does with each of these arguments, all panels of one type, in about the time of one
    copy of all: threads are woken once. Converted rows are kept a few at a time.

    Returns:
        Of the rows of each, as they were put, the sum of ``weighted_sum.h``.
    """
    ready: list[_Rows] = []
    converted: list[torch.Tensor] = []
    sums: list[int] = []
    for panels, first_row, given_nK in copies:
        rows_nK = given_nK.to(device="cpu", dtype=panels.dtype).contiguous()
        ready.append(_rows(panels, first_row, rows_nK))
        if rows_nK is not given_nK:
            converted.append(rows_nK)
        if sum(tensor.numel() for tensor in converted) > _CONVERTED_AT_ONCE:
            sums += _copy("put_rows", panels.dtype, ready)
            ready, converted = [], []
    if ready:
        sums += _copy("put_rows", copies[0][0].dtype, ready)
    return sums


def get_rows(panels: torch.Tensor, first_row: int, num_rows: int) -> torch.Tensor:
    """A copy [n, K] of rows in the panels."""
    assert panels.untyped_storage().nbytes(), "the memory was released"
    rows_nK = torch.empty(num_rows, panels.shape[1] * panels.shape[3], dtype=panels.dtype)
    _copy("get_rows", panels.dtype, [_rows(panels, first_row, rows_nK)])
    return rows_nK


def places_of(panels: torch.Tensor, first_row: int, indices: torch.Tensor) -> torch.Tensor:
    """Where elements lie in the flattened panels; ``indices`` (int64) are those into the flattened rows from
    ``first_row`` on."""
    _, num_units, num_rows, unit = panels.shape
    row = indices // (num_units * unit) + first_row
    column = indices % (num_units * unit)
    return ((row // num_rows * num_units + column // unit) * num_rows + row % num_rows) * unit + column % unit


class _Rows(ctypes.Structure):
    """Mirrored by ``Rows`` in ``linear.cpp``."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("panels", "rows")),
        ("sum", ctypes.c_uint64),
        *((name, ctypes.c_int32) for name in ("first", "num_rows", "num_inputs")),
    )


def _rows(panels: torch.Tensor, first_row: int, rows_nK: torch.Tensor) -> _Rows:
    assert rows_nK.shape[1] == panels.shape[1] * panels.shape[3]
    assert first_row + len(rows_nK) <= panels.shape[0] * _PANEL
    return _Rows(panels.data_ptr(), rows_nK.data_ptr(), 0, first_row, *rows_nK.shape)


def _copy(name: str, dtype: torch.dtype, all_rows: Sequence[_Rows]) -> list[int]:
    function = getattr(load_library(), f"{name}_{'float32' if dtype is torch.float32 else 'bfloat16'}")
    array = (_Rows * len(all_rows))(*all_rows)
    function(ctypes.addressof(array), len(all_rows), torch.get_num_threads())
    return [rows.sum for rows in array]
