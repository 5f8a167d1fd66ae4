"""What LoRA adapters add to the products of a step: see ``low_rank.h``."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from rlserve.native.panels import panels_of

_MOST_SECONDS = 3


class _LowRank(ctypes.Structure):
    """Mirrored by ``LowRank`` in ``low_rank.h``."""

    _fields_ = (
        ("first", ctypes.c_void_p),
        ("seconds", ctypes.c_void_p * _MOST_SECONDS),
        ("outputs", ctypes.c_int32 * _MOST_SECONDS),
        ("ranks", ctypes.c_int32 * _MOST_SECONDS),
    )


class _AdapterRows(ctypes.Structure):
    """Mirrored by ``AdapterRows`` in ``low_rank.h``."""

    _fields_ = (("products", ctypes.c_void_p), ("rows", ctypes.c_void_p), ("num_rows", ctypes.c_int32))


class _StepAdapters(ctypes.Structure):
    """Mirrored by ``StepAdapters`` in ``low_rank.h``."""

    _fields_ = (("groups", ctypes.c_void_p), ("num_groups", ctypes.c_int32), ("most_rank", ctypes.c_int32))


@dataclass(frozen=True, kw_only=True)
class LowRankPair:
    """Of one product: what is added to it is ``x @ first.T @ second.T``, where ``second`` is made of blocks on the
    diagonal. All of one type, float32 or bfloat16; ranks are even."""

    first: torch.Tensor
    """[rank, inputs]"""
    seconds: Sequence[torch.Tensor]
    """[outputs, rank] each, at most three, of any of which the rank may be 0."""


class LowRankTable:
    """An adapter as programs compute with it.

    Args:
        num_places: of products; operations know theirs by number.
        pairs: by place.
    """

    def __init__(self, num_places: int, pairs: Mapping[int, LowRankPair]) -> None:
        self._table = (_LowRank * num_places)()
        self._panels: list[torch.Tensor] = []
        self.most_rank = max(len(pair.first) for pair in pairs.values())
        for place, pair in pairs.items():
            entry = self._table[place]
            entry.first = self._kept(pair.first)
            for index, second in enumerate(pair.seconds):
                entry.outputs[index], entry.ranks[index] = second.shape
                entry.seconds[index] = self._kept(second) if second.shape[1] else None

    @property
    def address(self) -> int:
        """Of the products, by place."""
        return ctypes.addressof(self._table)

    def _kept(self, rows: torch.Tensor) -> int:
        self._panels.append(panels_of(rows))
        return self._panels[-1].data_ptr()


class StepLowRanks:
    """The adapters of a step, each with the rows that have it (int64)."""

    def __init__(self, groups: Sequence[tuple[LowRankTable, torch.Tensor]]) -> None:
        self._kept = [(table, rows.to(torch.int32).contiguous()) for table, rows in groups]
        rows_of = [_AdapterRows(table.address, rows.data_ptr(), len(rows)) for table, rows in self._kept]
        self._groups = (_AdapterRows * len(groups))(*rows_of)
        most_rank = max(table.most_rank for table, _ in groups)
        self._adapters = _StepAdapters(ctypes.addressof(self._groups), len(groups), most_rank)

    @property
    def address(self) -> int:
        """As programs take it; this must live as long."""
        return ctypes.addressof(self._adapters)
