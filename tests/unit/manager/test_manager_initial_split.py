"""The split that a run begins with."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from manager_builders import H20, H100, H200, make_gang

from rlserve.errors import PoolError
from rlserve.manager.initial_split import initial_split, resumed_split
from rlserve.manager.policies.base import GangFigures
from rlserve.manager.policies.ordering import order_for_rollout, order_for_training
from rlserve.manager.roles import Role


def rollout_of(split: dict[str, Role]) -> list[str]:
    """Ids of the slots that begin as rollout."""
    return [gang_id for gang_id, role in split.items() if role is Role.ROLLOUT]


def test_slots_begin_in_the_role_they_prefer() -> None:
    slots = [make_gang(f"h100-{n}", figures=H100, prefer=Role.TRAIN) for n in range(8)]
    slots += [make_gang(f"h200-{n}", figures=H200, prefer=Role.ROLLOUT) for n in range(4)]
    split = initial_split(slots, None)
    assert list(split) == [slot.id for slot in slots]
    assert rollout_of(split) == ["h200-0", "h200-1", "h200-2", "h200-3"]


@pytest.mark.parametrize(("num_slots", "num_rollout"), [(2, 1), (3, 1), (4, 2), (5, 2)])
@pytest.mark.parametrize("prefer", [None, Role.TRAIN])
def test_half_roll_out_where_none_prefers_it(num_slots: int, num_rollout: int, prefer: Role | None) -> None:
    split = initial_split([make_gang(f"s{number}", prefer=prefer) for number in range(num_slots)], None)
    assert len(rollout_of(split)) == num_rollout


def test_a_given_number_takes_those_that_suit_rollout_best() -> None:
    slots = [
        make_gang("a", figures=H20, prefer=Role.TRAIN),
        make_gang("b", figures=H100),
        make_gang("c", figures=H200),
        make_gang("d", figures=H100, prefer=Role.ROLLOUT),
    ]
    assert [rollout_of(initial_split(slots, count)) for count in (1, 2, 3)] == [["d"], ["c", "d"], ["b", "c", "d"]]


@pytest.mark.parametrize(
    ("num_slots", "prefer", "num_initial_rollout", "message"),
    [
        (1, None, None, "the pool has 1 slot"),
        (0, None, 1, "the pool has 0 slot"),
        (3, Role.ROLLOUT, None, "all 3 slots prefer rollout, which leaves none to train"),
        (3, None, 3, r"pool\.num_initial_rollout=3 of 3 slots .* between 1 and 2"),
        (3, None, 9, r"pool\.num_initial_rollout=9 of 3 slots .* between 1 and 2"),
    ],
)
def test_a_split_that_cannot_be_is_refused(
    num_slots: int, prefer: Role | None, num_initial_rollout: int | None, message: str
) -> None:
    slots = [make_gang(f"s{number}", prefer=prefer) for number in range(num_slots)]
    with pytest.raises(PoolError, match=message):
        initial_split(slots, num_initial_rollout)


@given(st.lists(st.tuples(st.sampled_from([H20, H100, H200]), st.sampled_from([None, *Role])), max_size=8))
def test_the_two_orders_are_mirror_images_and_do_not_depend_on_the_order_given(
    kinds: list[tuple[GangFigures, Role | None]],
) -> None:
    slots = [make_gang(f"s{n}", figures=figures, prefer=prefer) for n, (figures, prefer) in enumerate(kinds)]
    ordered = order_for_rollout(slots)
    assert ordered == order_for_rollout(reversed(slots))
    assert order_for_training(slots) == ordered[::-1]
    preferences = [{Role.ROLLOUT: 0, None: 1, Role.TRAIN: 2}[slot.prefer] for slot in ordered]
    ratios = [slot.figures.flops_tflops / slot.figures.memory_bandwidth_gb_s for slot in ordered]
    assert list(zip(preferences, ratios, strict=True)) == sorted(zip(preferences, ratios, strict=True))


T, R = Role.TRAIN, Role.ROLLOUT


@pytest.mark.parametrize(
    ("before", "resumed"),
    [
        ({"a": T, "b": R, "c": R}, {"a": T, "b": R, "c": R}),
        ({"b": R, "c": R}, {"a": T, "b": R, "c": R}),  # a was changing roles
        ({"a": T, "b": T, "c": T}, {"a": T, "b": T, "c": R}),  # nobody would roll out
        ({"a": R, "d": T}, {"a": T, "b": T, "c": R}),  # another pool
        ({}, {"a": T, "b": T, "c": R}),
    ],
)
def test_a_resumed_run_has_the_roles_of_before_if_it_has_the_gangs(
    before: dict[str, Role], resumed: dict[str, Role]
) -> None:
    assert resumed_split({"a": T, "b": T, "c": R}, before) == resumed
