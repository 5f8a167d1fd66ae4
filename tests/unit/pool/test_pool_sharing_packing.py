"""Where runs have their shares: gangs whole on a node, as little moved as can be, and it comes to rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from rlserve.pool.sharing.base import Place
from rlserve.pool.sharing.packing import Part, pack

TYPE = "H100"


def at(**counts: int) -> dict[Place, int]:
    """Slots by node."""
    return {(node, TYPE): count for node, count in counts.items()}


def a_part(run_id: str, share: int, has: Mapping[Place, int], **changes: int) -> Part:
    """All of which may be lent."""
    return replace(Part(run_id=run_id, share=share, has=has, lendable=has), **changes)


def packed(parts: Sequence[Part], slots: Mapping[Place, int]) -> dict[str, dict[str, int]]:
    """By run and node, where there are any."""
    taken = sum((Counter(part.has) for part in parts), Counter[Place]())
    free = {place: count - taken[place] for place, count in slots.items()}
    found = pack(parts, slots, free)
    return {run_id: {node: count for (node, _), count in has.items() if count} for run_id, has in found.items()}


def test_a_run_keeps_what_it_has() -> None:
    parts = [a_part("first", 3, at(a=1, b=2)), a_part("second", 1, at(b=1))]
    assert packed(parts, at(a=4, b=4)) == {"first": {"a": 1, "b": 2}, "second": {"b": 1}}


def test_a_single_slot_is_taken_where_it_breaks_no_gang() -> None:
    assert packed([a_part("one", 1, {}), a_part("other", 1, at(b=3))], at(a=4, b=4)) == {
        "one": {"b": 1},
        "other": {"b": 1},
    }
    assert packed([a_part("one", 1, {}), a_part("gang", 4, {}, gang_size=4)], at(a=4, b=5)) == {
        "one": {"b": 1},
        "gang": {"a": 4},
    }


def test_what_is_over_a_share_makes_room_before_anybody_moves() -> None:
    parts = [a_part("over", 2, at(a=1, b=2)), a_part("even", 1, at(a=1)), a_part("gang", 2, {}, gang_size=2)]
    assert packed(parts, at(a=2, b=3)) == {"over": {"a": 1, "b": 1}, "even": {"a": 1}, "gang": {"b": 2}}


def test_a_slot_moves_for_a_gang_only_where_none_fits_otherwise() -> None:
    parts = [a_part("first", 1, at(a=1)), a_part("second", 1, at(b=1)), a_part("gang", 2, {}, gang_size=2)]
    assert packed(parts, at(a=2, b=2, c=2))["gang"] == {"c": 2}
    found = packed(parts, at(a=2, b=2))
    assert found["gang"] in ({"a": 2}, {"b": 2})
    assert found["first"] == found["second"]


def test_no_gang_moves_for_another_of_its_size() -> None:
    parts = [a_part("gang", 2, at(a=2), gang_size=2), a_part("late", 2, {}, gang_size=2)]
    assert packed(parts, at(a=3, b=1)) == {"gang": {"a": 2}, "late": {}}


def test_what_trains_goes_only_where_the_share_asks_for_it() -> None:
    part = Part(run_id="trains", share=1, has=at(a=2, b=1), lendable=at(b=1))
    assert packed([part, a_part("gang", 2, {}, gang_size=2)], at(a=2, b=1)) == {"trains": {"b": 1}, "gang": {"a": 2}}
    enough = replace(part, share=2, has=at(a=2, b=1))
    assert packed([enough, a_part("one", 1, {})], at(a=2, b=1)) == {"trains": {"a": 2}, "one": {"b": 1}}


@st.composite
def clusters(draw: st.DrawFn) -> tuple[list[Part], dict[Place, int]]:
    """Nodes of whole large gangs, and shares that fit beside each other."""
    slots = at(**{name: 4 * draw(st.integers(1, 2)) for name in "abcd"[: draw(st.integers(1, 4))]})
    left = Counter(slots)
    num_left, parts = sum(slots.values()), list[Part]()
    for index in range(draw(st.integers(1, 4))):
        size = draw(st.sampled_from([1, 2, 4]))
        share = draw(st.integers(0, num_left)) // size * size
        num_left -= share
        has = Counter[Place]()
        for place in slots:
            count = draw(st.integers(0, left[place])) // size * size
            has[place] += count
            left[place] -= count
        parts.append(a_part(f"run {index}", share, dict(has), gang_size=size, priority=draw(st.integers(0, 2))))
    return parts, slots


@settings(max_examples=400, deadline=None)
@given(clusters())
def test_every_share_is_made_of_whole_gangs_and_fits_and_dividing_again_changes_nothing(
    cluster: tuple[list[Part], dict[Place, int]],
) -> None:
    parts, slots = cluster
    free = {place: count - sum(part.has.get(place, 0) for part in parts) for place, count in slots.items()}
    found = pack(parts, slots, free)
    for place, count in slots.items():
        assert sum(has[place] for has in found.values()) <= count
    for part in parts:
        assert sum(found[part.run_id].values()) == part.share
        assert all(count % part.gang_size == 0 for count in found[part.run_id].values())
    again = [replace(part, has=found[part.run_id], lendable=found[part.run_id]) for part in parts]
    assert pack(again, slots, free) == found
