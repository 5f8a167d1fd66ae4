"""How slots are divided among runs: what always holds, for any runs, and that division comes to rest."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from rlserve.pool.sharing.shares import Asking, Wish, admitted, shares_of


@st.composite
def wishes_of_runs(draw: st.DrawFn, *, num_slots: int, gang_sizes: tuple[int, ...] = (1, 2, 4)) -> list[Wish]:
    """Runs whose floors fit, with what they have in any state."""
    found, left, unheld = [], num_slots, num_slots
    for number in range(draw(st.integers(1, 4))):
        size = draw(st.sampled_from(gang_sizes))
        gangs = st.integers(0, num_slots // size)
        floor = min(draw(gangs), left // size) * size
        held = min(draw(gangs), unheld // size) * size
        left, unheld = left - floor, unheld - held
        most = draw(st.none() | gangs.map(lambda count, size=size, floor=floor: max(count * size, floor)))
        found.append(
            Wish(
                run_id=f"run {number}",
                priority=draw(st.integers(-1, 2)),
                floor=floor,
                useful=draw(st.none() | gangs.map(lambda count, size=size: count * size)),
                most=most,
                held=held,
                num_lendable=draw(st.integers(0, held // size)) * size,
                gang_size=size,
            )
        )
    return found


CLUSTERS = st.integers(1, 12).flatmap(lambda count: st.tuples(st.just(count), wishes_of_runs(num_slots=count)))


@given(CLUSTERS)
def test_what_holds_of_every_division(cluster: tuple[int, list[Wish]]) -> None:
    num_slots, wishes = cluster
    shares = shares_of(wishes, num_slots)
    assert sum(shares.values()) <= num_slots
    for wish in wishes:
        share = shares[wish.run_id]
        assert share >= wish.floor, "nobody is below its floor"
        assert share % wish.gang_size == 0, "whole gangs"
        assert wish.most is None or share <= wish.most
    left = num_slots - sum(shares.values())
    for wish in wishes:
        more = shares[wish.run_id] + wish.gang_size
        assert more > left + shares[wish.run_id] or (wish.most is not None and more > wish.most), "none lies idle"


def useful_of(wish: Wish, num_slots: int) -> int:
    bounds = [bound for bound in (wish.useful, wish.most) if bound is not None]
    return min(bounds, default=num_slots)


@given(CLUSTERS)
def test_no_lower_priority_has_what_a_higher_one_could_use(cluster: tuple[int, list[Wish]]) -> None:
    """Above the floor of the lower one, and what it trains on."""
    num_slots, wishes = cluster
    shares = shares_of(wishes, num_slots)
    left = num_slots - sum(shares.values())
    for high in wishes:
        if shares[high.run_id] + high.gang_size > useful_of(high, num_slots):
            continue
        for low in wishes:
            if low.priority < high.priority:
                kept = max(low.floor, low.held - low.num_lendable)
                assert shares[low.run_id] + left < kept + high.gang_size, f"{low} keeps what {high} could use: {shares}"


@given(CLUSTERS)
def test_what_trains_is_taken_for_floors_alone(cluster: tuple[int, list[Wish]]) -> None:
    num_slots, wishes = cluster
    shares = shares_of(wishes, num_slots)
    floors = sum(wish.floor for wish in wishes)
    kept = sum(
        max(0, min(wish.held - wish.num_lendable, num_slots if wish.most is None else wish.most) - wish.floor)
        for wish in wishes
    )
    if floors + kept <= num_slots:
        for wish in wishes:
            trains = wish.held - wish.num_lendable
            assert shares[wish.run_id] >= min(trains, num_slots if wish.most is None else wish.most)


@given(CLUSTERS)
def test_dividing_again_changes_nothing(cluster: tuple[int, list[Wish]]) -> None:
    """Once slots have changed hands: no slot goes to and fro."""
    num_slots, wishes = cluster
    shares = shares_of(wishes, num_slots)
    after = []
    for wish in wishes:
        share, trains = shares[wish.run_id], wish.held - wish.num_lendable
        after.append(replace(wish, held=share, num_lendable=share - min(trains, share)))
    assert shares_of(after, num_slots) == shares


@given(st.integers(2, 12), st.integers(2, 4))
def test_equal_priorities_differ_by_one_gang_at_most(num_slots: int, num_runs: int) -> None:
    """Whoever had all of it before."""
    wishes = [
        Wish(run_id=f"run {number}", held=0 if number else num_slots, num_lendable=0 if number else num_slots)
        for number in range(num_runs)
    ]
    shares = shares_of(wishes, num_slots).values()
    assert sum(shares) == num_slots
    assert max(shares) - min(shares) <= 1


def test_a_run_alone_has_all_whatever_it_could_use() -> None:
    assert shares_of([Wish(run_id="alone", useful=0)], 6) == {"alone": 6}


def test_what_nobody_could_use_stays_where_it_is() -> None:
    high = Wish(run_id="high", priority=1, useful=2, held=2, num_lendable=2)
    low = Wish(run_id="low", useful=1, held=4, num_lendable=4)
    assert shares_of([high, low], 6) == {"high": 2, "low": 4}


def test_a_newcomer_of_a_higher_priority_leaves_the_floor_and_what_trains() -> None:
    low = Wish(run_id="low", floor=2, held=8, num_lendable=5)
    high = Wish(run_id="high", priority=1, floor=2)
    assert shares_of([low, high], 8) == {"low": 3, "high": 5}


def test_who_may_begin_is_who_fits_beside_the_floors_of_those_that_have() -> None:
    asking = [
        Asking(run_id="first", priority=0, floors={"H100": 2}),
        Asking(run_id="urgent", priority=1, floors={"H100": 4}),
        Asking(run_id="huge", priority=2, floors={"H100": 8}),
        Asking(run_id="empty", priority=3, floors={"H100": 0}),
    ]
    may = admitted([{"H100": 2}], asking, {"H100": 8})
    assert [each.run_id for each in may] == ["urgent", "first"], "those whose floors fit, the urgent first"
    assert admitted([{"H100": 4}], asking, {"H100": 8}) == (asking[1],)


def test_all_types_must_fit() -> None:
    asking = [Asking(run_id="mixed", priority=0, floors={"H100": 2, "L40S": 2})]
    assert admitted([{"H100": 2, "L40S": 7}], asking, {"H100": 8, "L40S": 8}) == ()
