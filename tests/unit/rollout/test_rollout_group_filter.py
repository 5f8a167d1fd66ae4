"""Leaving out groups of equal rewards."""

from __future__ import annotations

from rlserve.rollout.group_filter import GroupFilter

EQUAL, DIFFERENT = (0.5, 0.5, 0.5), (0.5, 0.5, 0.6)


def test_groups_of_equal_rewards_are_left_out() -> None:
    group_filter = GroupFilter(max_per_step=10)
    assert [group_filter.keeps(rewards, num_steps=0) for rewards in (EQUAL, DIFFERENT, EQUAL)] == [False, True, False]


def test_once_a_steps_bound_is_reached_every_group_is_kept_until_the_next() -> None:
    group_filter = GroupFilter(max_per_step=2)
    assert [group_filter.keeps(EQUAL, num_steps=3) for _ in range(4)] == [False, False, True, True]
    assert [group_filter.keeps(EQUAL, num_steps=4) for _ in range(3)] == [False, False, True]


def test_a_bound_of_0_keeps_all() -> None:
    assert GroupFilter(max_per_step=0).keeps(EQUAL, num_steps=0)
