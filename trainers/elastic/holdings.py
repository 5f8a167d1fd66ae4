"""Which rank holds which shard of the optimizer's state.

A vector of N elements is cut into as many shards as there are holders, even to within 64 bytes. Shard s belongs to
rank s, its owner; the rank one gang further on, its second holder, has a copy::

    ranks of gangs of one      0      1      2      3          gangs of two     0      1      2      3
    own                       [0)    [1)    [2)    [3)                         [0)    [1)    [2)    [3)
    copy                      [3)    [0)    [1)    [2)                         [2)    [3)    [0)    [1)

So the loss of any one rank, and of any one gang of several, loses nothing. A single rank has no second holder, and in
a single gang the second holder is the next rank.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlserve.trainers.elastic.intervals import Interval, Intervals

ALIGNMENT = 16
"""Elements: 64 bytes. Shards begin at multiples of it, so that kernels compute the same bits however they are cut."""


@dataclass(frozen=True, kw_only=True)
class Holdings:
    """A pure function of the number of ranks, so that all ranks of a group agree on it."""

    num_elements: int
    num_holders: int
    gang_size: int = 1
    """Consecutive ranks that come, leave and are lost together."""

    def __post_init__(self) -> None:
        assert self.num_elements % ALIGNMENT == 0
        assert 1 <= self.gang_size <= self.num_holders
        assert self.num_holders % self.gang_size == 0

    def shard(self, index: int) -> Interval:
        """The elements of one shard."""
        return Interval(self._bound(index), self._bound(index + 1))

    def second_holder(self, index: int) -> int | None:
        """The rank that has a copy of a shard."""
        if self.num_holders == 1:
            return None
        return (index + self._distance) % self.num_holders

    def held_by(self, rank: int) -> Intervals:
        """A rank's own shard, then the one that it has a copy of; nothing for ranks that are no holders."""
        if rank >= self.num_holders:
            return ()
        if self.num_holders == 1:
            return (self.shard(0),)
        return self.shard(rank), self.shard((rank - self._distance) % self.num_holders)

    @property
    def _distance(self) -> int:
        return self.gang_size if self.num_holders > self.gang_size else 1

    def _bound(self, index: int) -> int:
        return index * (self.num_elements // ALIGNMENT) // self.num_holders * ALIGNMENT
