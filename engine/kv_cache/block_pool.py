"""The owner of all KV blocks.

A block is free (reference count 0) or held by one or more sequences. A free block keeps its content, and its
name if it has one, until it is given out again: the prefix cache costs no memory. Free blocks are given out in
order of their release, so the prefix used longest ago goes first. Always: free + held = total.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable

import numpy as np


class BlockPool:
    """Free list, reference counts and names of ``num_blocks`` blocks, numbered from 0."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.reference_counts = np.zeros(num_blocks, dtype=np.int32)
        """[num_blocks] read-only for others."""
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._name_of_block: dict[int, bytes] = {}
        self._block_of_name: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    def allocate(self) -> int:
        """Take the free block released longest ago; what it cached is forgotten. There must be one."""
        block, _ = self._free.popitem(last=False)
        self._forget(block)
        self.reference_counts[block] = 1
        return block

    def share(self, block: int, *, times: int = 1) -> None:
        """Hold a block once more, or several times; a free one leaves the free list."""
        if self.reference_counts[block] == 0:
            del self._free[block]
        self.reference_counts[block] += times

    def release(self, blocks: Iterable[int]) -> None:
        """Let go of blocks of one sequence, given in order of position. The end of a prefix is used up before
        its beginning, which more sequences share."""
        for block in reversed(list(blocks)):
            count = int(self.reference_counts[block])
            assert count > 0, f"block {block} is released twice"
            self.reference_counts[block] = count - 1
            if count == 1:
                self._free[block] = None

    def find(self, name: bytes) -> int | None:
        """The block that holds the named prefix's last tokens, held or free."""
        return self._block_of_name.get(name)

    def is_free(self, block: int) -> bool:
        """Whether nobody holds the block."""
        return block in self._free

    def name_of(self, block: int) -> bytes | None:
        """The name of a block, if it has one."""
        return self._name_of_block.get(block)

    def publish(self, block: int, name: bytes) -> None:
        """Name a held, full block so that others find it. The first block of a name keeps it."""
        assert self.reference_counts[block] > 0, f"block {block} is published but not held"
        if block not in self._name_of_block and name not in self._block_of_name:
            self._name_of_block[block] = name
            self._block_of_name[name] = block

    def forget_all(self) -> None:
        """Drop all names: the content of every block is of the past."""
        self._name_of_block.clear()
        self._block_of_name.clear()

    def check_all_free(self) -> None:
        """Assert that nobody holds a block. Takes little time, however many there are."""
        assert len(self._free) == self.num_blocks, f"{self.num_blocks - len(self._free)} blocks are lost"
        assert not self.reference_counts.any(), "a free block is held"

    def check_integrity(self, held: Counter[int]) -> None:
        """Assert that counts are exactly what the sequences hold, and that every block is free or held."""
        num_held = np.zeros(self.num_blocks, dtype=np.int32)
        num_held[list(held)] = list(held.values())
        wrong = np.flatnonzero(self.reference_counts != num_held)
        assert len(wrong) == 0, f"block {wrong[0]}: count differs from its holders"
        is_free = np.zeros(self.num_blocks, dtype=np.bool_)
        is_free[list(self._free)] = True
        wrong = np.flatnonzero(is_free == (num_held > 0))
        assert len(wrong) == 0, f"block {wrong[0]}: both or neither free and held"
        assert len(self._name_of_block) == len(self._block_of_name)
        for block, name in self._name_of_block.items():
            assert self._block_of_name[name] == block

    def _forget(self, block: int) -> None:
        name = self._name_of_block.pop(block, None)
        if name is not None:
            del self._block_of_name[name]
