"""Who holds which shard, and what is sent when ranks come, leave and are lost."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlserve.trainers import Traffic
from rlserve.trainers.elastic.holdings import ALIGNMENT, Holdings
from rlserve.trainers.elastic.intervals import Interval, Intervals, difference, intersection, union
from rlserve.trainers.elastic.transfers import Transfer, missing, plan_transfers, traffic_of

NUM_ELEMENTS = 10 * ALIGNMENT
EVERYTHING = (Interval(0, NUM_ELEMENTS),)


def elements(intervals: Intervals) -> set[int]:
    return {element for interval in intervals for element in range(*interval)}


some_intervals = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 9)).map(lambda pair: Interval(pair[0], pair[0] + pair[1])), max_size=6
).map(tuple)


@given(one=some_intervals, other=some_intervals)
def test_intervals_are_sets_of_elements(one: Intervals, other: Intervals) -> None:
    assert elements(union(one)) == elements(one)
    assert elements(difference(one, other)) == elements(one) - elements(other)
    for each in (union(one), difference(one, other)):
        assert all(left.end < right.first for left, right in itertools.pairwise(each))
    for left, right in itertools.product(one, other):
        assert elements((intersection(left, right),)) == elements((left,)) & elements((right,))


@given(num_blocks=st.integers(0, 50), num_gangs=st.integers(1, 6), gang_size=st.integers(1, 3))
def test_every_shard_has_an_owner_and_a_second_holder_outside_its_gang(
    num_blocks: int, num_gangs: int, gang_size: int
) -> None:
    num_holders = num_gangs * gang_size
    holdings = Holdings(num_elements=num_blocks * ALIGNMENT, num_holders=num_holders, gang_size=gang_size)
    shards = [holdings.shard(index) for index in range(num_holders)]
    assert [element for shard in shards for element in range(*shard)] == list(range(holdings.num_elements))
    assert max(shard.num_elements for shard in shards) - min(shard.num_elements for shard in shards) <= ALIGNMENT
    for index, shard in enumerate(shards):
        second = holdings.second_holder(index)
        assert holdings.held_by(index)[0] == shard
        if num_holders > 1:
            assert second not in (None, index)
            assert holdings.held_by(second)[1] == shard
        if num_gangs > 1:
            assert second // gang_size != index // gang_size
    assert all(len(holdings.held_by(rank)) == min(2, num_holders) for rank in range(num_holders))
    assert holdings.held_by(num_holders) == ()


def carried_out(present: list[Intervals], plan: tuple[Transfer, ...]) -> list[set[int]]:
    """What each rank has afterwards; nothing is sent that is there, twice, or by somebody who has it not."""
    had = [elements(intervals) for intervals in present]
    has = [set(each) for each in had]
    for transfer in plan:
        sent = elements((transfer.elements,))
        assert sent
        assert sent <= had[transfer.source]
        assert not sent & has[transfer.destination]
        has[transfer.destination] |= sent
    return has


@given(present=st.lists(some_intervals, min_size=1, max_size=5), data=st.data())
def test_a_plan_brings_every_rank_what_it_lacks_and_nothing_else(present: list[Intervals], data: st.DataObject) -> None:
    anywhere = union(part for each in present for part in each)
    wanted = [difference(each, difference(each, anywhere)) for each in data.draw(st.permutations(present))]
    assert missing(present, wanted) == ()
    plan = plan_transfers(present, wanted)
    has, num_lacking = carried_out(present, plan), 0
    for before, after, wish in zip(present, has, wanted, strict=True):
        assert after == elements(before) | elements(wish)
        num_lacking += len(elements(wish) - elements(before))
    assert traffic_of(plan, present, wanted) == Traffic(moved_bytes=4 * num_lacking, least_bytes=4 * num_lacking)
    twice = traffic_of([*plan, *plan], present, wanted)
    assert (twice.moved_bytes, twice.least_bytes) == (8 * num_lacking, 4 * num_lacking)


@settings(max_examples=200)
@given(
    changes=st.lists(st.tuples(st.sampled_from(["join", "leave", "lose", "reorder"]), st.integers(0, 9)), max_size=12)
)
def test_after_any_joins_leaves_and_single_losses_every_shard_has_its_two_holders(
    changes: list[tuple[str, int]],
) -> None:
    present: list[Intervals] = [EVERYTHING]
    for change, number in changes:
        rank = number % len(present)
        if change == "join":
            present = [*present, ()]
        elif change == "reorder":
            present = present[rank:] + present[:rank]
        elif len(present) > 1:
            present = present[:rank] + present[rank + 1 :]
        holdings = Holdings(num_elements=NUM_ELEMENTS, num_holders=len(present))
        wanted = [holdings.held_by(rank) for rank in range(len(present))]
        assert missing(present, wanted) == ()
        has = carried_out(present, plan_transfers(present, wanted))
        assert all(after >= elements(wish) for after, wish in zip(has, wanted, strict=True))
        present = wanted
        holders = [sum(element in elements(each) for each in present) for element in range(NUM_ELEMENTS)]
        assert set(holders) == {min(2, len(present))}


def test_a_gang_of_two_can_be_lost() -> None:
    before = Holdings(num_elements=NUM_ELEMENTS, num_holders=6, gang_size=2)
    for lost in range(3):
        survivors = [before.held_by(rank) for rank in range(6) if rank // 2 != lost]
        assert missing(survivors, [EVERYTHING]) == ()


def test_both_holders_of_a_shard_lost_leaves_it_missing() -> None:
    before = Holdings(num_elements=NUM_ELEMENTS, num_holders=4)
    survivors = [before.held_by(rank) for rank in (0, 3)]
    assert missing(survivors, [EVERYTHING]) == (before.shard(1),)
    with pytest.raises(ValueError, match="empty"):
        plan_transfers(survivors, [EVERYTHING, EVERYTHING])


def test_nothing_is_sent_where_two_ranks_change_places() -> None:
    holdings = Holdings(num_elements=NUM_ELEMENTS, num_holders=2)
    present = [holdings.held_by(1), holdings.held_by(0)]
    assert plan_transfers(present, [holdings.held_by(0), holdings.held_by(1)]) == ()
