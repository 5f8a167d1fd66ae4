"""The owner of the KV blocks, against a model that only counts."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rlserve.engine.kv_cache.block_pool import BlockPool

NUM_BLOCKS = 6


class BlockPoolMachine(RuleBasedStateMachine):
    """Holders take, share, publish and release blocks in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS)
        self.holders: list[list[int]] = []
        self.content: dict[int, int] = {}
        """What was last written to each block; a block given out anew is written anew."""
        self.published: dict[bytes, int] = {}
        self.num_writes = 0

    @precondition(lambda self: self.pool.num_free > 0)
    @rule()
    def allocate(self) -> None:
        block = self.pool.allocate()
        assert all(block not in held for held in self.holders)
        self.num_writes += 1
        self.content[block] = self.num_writes
        self.holders.append([block])

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(self.holders))[0]
        self.pool.share(block)
        self.holders.append([block])

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(self.holders))[0]
        name = str(self.content[block]).encode()
        self.pool.publish(block, name)
        self.published[name] = self.content[block]

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        held = self.holders.pop(data.draw(st.integers(0, len(self.holders) - 1)))
        self.pool.release(held)

    @rule(data=st.data())
    def find_and_share(self, data: st.DataObject) -> None:
        for name, content in self.published.items():
            block = self.pool.find(name)
            if block is not None:
                assert self.content[block] == content, "a name leads to a block that was written since"
                if data.draw(st.booleans()):
                    self.pool.share(block)
                    self.holders.append([block])

    @rule()
    def forget_all(self) -> None:
        self.pool.forget_all()
        assert all(self.pool.find(name) is None for name in self.published)
        self.published.clear()

    @invariant()
    def books_are_right(self) -> None:
        held = Counter(block for holder in self.holders for block in holder)
        self.pool.check_integrity(held)
        assert self.pool.num_free == NUM_BLOCKS - len(held)


TestBlockPool = BlockPoolMachine.TestCase
TestBlockPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_the_prefix_used_longest_ago_is_given_up_first_and_its_end_before_its_beginning() -> None:
    pool = BlockPool(4)
    first, second = [pool.allocate(), pool.allocate()], [pool.allocate(), pool.allocate()]
    for block in first + second:
        pool.publish(block, bytes([block]))
    pool.release(first)
    pool.release(second)
    assert [pool.allocate() for _ in range(4)] == [first[1], first[0], second[1], second[0]]
    assert all(pool.find(bytes([block])) is None for block in range(4))


def test_releasing_twice_is_a_bug_that_is_caught() -> None:
    pool = BlockPool(2)
    block = pool.allocate()
    pool.release([block])
    with pytest.raises(AssertionError, match="released twice"):
        pool.release([block])


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({0: 1}, "block 1: count differs"),
        ({0: 2, 1: 1}, "block 0: count differs"),
        ({0: 1, 1: 1, 2: 1}, "block 2: count differs"),
    ],
)
def test_a_count_that_is_not_what_the_holders_hold_is_found(held: dict[int, int], message: str) -> None:
    pool = BlockPool(3)
    pool.allocate()
    pool.allocate()
    pool.check_integrity(Counter({0: 1, 1: 1}))
    with pytest.raises(AssertionError, match=message):
        pool.check_integrity(Counter(held))


def test_a_block_that_is_both_or_neither_free_and_held_is_found() -> None:
    pool = BlockPool(3)
    held = Counter([pool.allocate()])
    pool._free[0] = None
    with pytest.raises(AssertionError, match="block 0: both or neither"):
        pool.check_integrity(held)
    del pool._free[0], pool._free[2]
    with pytest.raises(AssertionError, match="block 2: both or neither"):
        pool.check_integrity(held)
