"""How many nodes a run asks for: windows, cooldown, ceilings, budget, nodes that do not come."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from manager_builders import H100

from rlserve.manager.scale_out.base import AskState, Decision, NodeType, NodeView, Situation, Terms
from rlserve.manager.scale_out.decide import decide, price_per_hour

CHEAP = NodeType(name="cheap", num_gangs=1, num_slots=1, max_nodes=3, price_per_hour=1.0, figures=H100)
DEAR = NodeType(name="dear", num_gangs=2, num_slots=2, max_nodes=2, price_per_hour=5.0, figures=H100)
TERMS = Terms(
    types=(DEAR, CHEAP),
    grow_after_s=10.0,
    shrink_after_s=30.0,
    cooldown_s=20.0,
    node_timeout_s=60.0,
    retry_after_s=100.0,
)


class World:
    """A run that wants so many gangs, and a cluster that gives nodes when it is told to."""

    def __init__(self, terms: Terms = TERMS, *, num_others: int = 2, other_price: float = 0.0) -> None:
        self.terms, self.num_others, self.other_price = terms, num_others, other_price
        self.state, self.time_s, self.number = AskState(), 0.0, 0
        self.nodes: dict[str, NodeView] = {}
        self.decision = Decision(asked={}, reason="")

    def look(self, num_wanted: int | None, *, elapsed_s: float = 0.0) -> Decision:
        self.time_s += elapsed_s
        situation = self.situation(num_wanted)
        self.decision, self.state = decide(situation, self.state, self.terms)
        for node_id in self.decision.give_up:
            self.nodes[node_id] = replace(self.nodes[node_id], is_ending=True)
        return self.decision

    def situation(self, num_wanted: int | None) -> Situation:
        return Situation(
            time_s=self.time_s,
            num_wanted=num_wanted,
            why="test",
            nodes=tuple(self.nodes.values()),
            num_other_gangs=self.num_others,
            other_price_per_hour=self.other_price,
        )

    def settle(self, num_wanted: int | None, *, seconds: int) -> Decision:
        for _ in range(seconds):
            self.look(num_wanted, elapsed_s=1.0)
        return self.decision

    def come(self, name: str, number: int = 1) -> None:
        for _ in range(number):
            self.number += 1
            self.nodes[f"{name}{self.number}"] = NodeView(id=f"{name}{self.number}", type=name)

    def end(self) -> None:
        self.nodes = {node.id: node for node in self.nodes.values() if not node.is_ending}

    @property
    def here(self) -> Counter[str]:
        return Counter(node.type for node in self.nodes.values() if not node.is_ending)

    @property
    def asked(self) -> dict[str, int]:
        return {name: number for name, number in self.decision.asked.items() if number}


def test_more_are_asked_for_once_they_were_wanted_for_the_whole_window_the_cheapest_for_what_they_do_first() -> None:
    world = World()
    world.settle(2, seconds=10)
    assert world.asked == {}, "nine seconds are no window of ten"
    world.settle(2, seconds=1)
    assert world.asked == {"cheap": 2}
    world.settle(7, seconds=10)
    assert world.asked == {"cheap": 2}
    world.settle(7, seconds=1)
    assert world.asked == {"cheap": 3, "dear": 2}


def test_of_a_wish_that_varies_growing_takes_the_least_and_shrinking_the_most() -> None:
    world = World()
    for _ in range(20):
        world.look(3, elapsed_s=1.0)
        world.look(1, elapsed_s=1.0)
    assert world.asked == {"cheap": 1}
    world.come("cheap")
    world.settle(0, seconds=25)
    world.look(1, elapsed_s=1.0)
    world.settle(0, seconds=25)
    assert world.asked == {"cheap": 1}, "it was wanted less than 30 s ago"
    world.settle(0, seconds=10)
    assert (world.asked, world.decision.give_up) == ({}, ()), "it is ending already"
    assert [node.is_ending for node in world.nodes.values()] == [True]


def test_nothing_is_given_back_within_the_cooldown_after_more_were_asked_for() -> None:
    world = World(replace(TERMS, grow_after_s=0.0, shrink_after_s=0.0, cooldown_s=20.0))
    world.look(2, elapsed_s=1.0)
    world.come("cheap", 2)
    world.settle(0, seconds=19)
    assert world.asked == {"cheap": 2}
    world.look(0, elapsed_s=1.0)
    assert world.asked == {}


def test_a_wish_that_is_not_known_changes_nothing_and_begins_the_windows_anew() -> None:
    world = World()
    world.settle(2, seconds=11)
    world.come("cheap", 2)
    world.settle(None, seconds=100)
    assert world.asked == {"cheap": 2}
    world.settle(3, seconds=10)
    assert world.asked == {"cheap": 2}


def test_nodes_that_do_not_come_are_asked_for_no_more_and_another_type_is() -> None:
    world = World()
    world.settle(2, seconds=11)
    world.come("cheap")
    world.settle(2, seconds=60)
    assert world.asked == {"cheap": 2}, "each that comes begins the time anew"
    late = world.settle(2, seconds=1)
    assert (dict(late.late), world.asked) == ({"cheap": 1}, {"cheap": 1, "dear": 1})
    world.come("dear")
    world.settle(3, seconds=99)
    assert world.asked == {"cheap": 1, "dear": 1}
    world.settle(4, seconds=12)
    assert world.asked == {"cheap": 2, "dear": 1}, "after a while the type is tried again"


def test_without_another_type_it_is_said_what_stands_in_the_way_and_tried_again_later() -> None:
    world = World(replace(TERMS, types=(CHEAP,)))
    world.settle(2, seconds=11 + 60)
    decision = world.settle(2, seconds=1)
    assert world.asked == {}
    assert "did not come" in decision.reason
    world.settle(2, seconds=100)
    assert world.asked == {"cheap": 2}


def test_nothing_new_is_asked_for_in_the_place_of_a_node_that_has_not_ended_where_the_budget_has_no_room() -> None:
    least_dear = replace(DEAR, min_nodes=0)
    terms = replace(TERMS, types=(CHEAP, least_dear), money_per_hour=8.0, grow_after_s=0.0, shrink_after_s=0.0)
    world = World(replace(terms, cooldown_s=0.0), other_price=3.0)
    world.come("dear")
    world.look(2, elapsed_s=1.0)
    assert world.asked == {"dear": 1}, "what is there at first is kept while there is use for it"
    world.look(0, elapsed_s=1.0)
    world.look(3, elapsed_s=1.0)
    assert world.asked == {"dear": 1}, "only the one that is still there and paid may be taken again"
    world.look(0, elapsed_s=1.0)
    world.end()
    world.look(3, elapsed_s=1.0)
    assert world.asked == {"cheap": 3}
    assert "8 an hour" not in world.decision.reason


def test_those_that_roll_out_are_given_up_before_those_that_train_and_two_gangs_stay() -> None:
    world = World(replace(TERMS, grow_after_s=0.0, shrink_after_s=0.0), num_others=1)
    world.come("cheap", 3)
    world.nodes["cheap3"] = replace(world.nodes["cheap3"], trains=True)
    world.look(0, elapsed_s=1.0)
    assert set(world.decision.give_up) == {"cheap1", "cheap2"}
    assert world.asked == {"cheap": 1}
    assert not world.nodes["cheap3"].is_ending


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["look", "come", "end", "lose", "wait"]),
        st.one_of(st.none(), st.integers(0, 12)),
        st.sampled_from(["cheap", "dear"]),
    ),
    max_size=60,
)


@given(steps=STEPS, budget=st.one_of(st.none(), st.floats(2.0, 20.0)), least=st.integers(0, 1))
def test_never_over_a_ceiling_or_the_budget_whatever_comes_and_goes(
    steps: list[tuple[str, int | None, str]], budget: float | None, least: int
) -> None:
    types = (replace(CHEAP, min_nodes=least), DEAR)
    terms = replace(TERMS, types=types, money_per_hour=budget, grow_after_s=2.0, shrink_after_s=4.0, cooldown_s=3.0)
    world = World(replace(terms, node_timeout_s=5.0, retry_after_s=6.0), other_price=1.0)
    for what, wanted, name in steps:
        if what == "come" and world.here[name] < world.decision.asked.get(name, 0):
            world.come(name)  # the run takes no more than it has asked for
        elif what == "end":
            world.end()
        elif what == "lose" and world.here[name]:
            world.nodes.pop(next(node.id for node in world.nodes.values() if node.type == name))
        elif what == "wait":
            world.time_s += 5.0
        decision = world.look(wanted, elapsed_s=1.0)
        assert all(0 <= decision.asked[each.name] <= each.max_nodes for each in types)
        price = price_per_hour(decision.asked, world.situation(wanted), world.terms)
        assert price is not None
        assert budget is None or price <= budget * (1 + 1e-6)
        assert all(world.here[each.name] <= decision.asked[each.name] for each in types)


@given(wanted=st.integers(0, 12), budget=st.one_of(st.none(), st.floats(3.0, 20.0)))
def test_a_steady_wish_comes_to_rest_at_once_and_as_near_to_it_as_is_allowed(wanted: int, budget: float | None) -> None:
    world = World(replace(TERMS, money_per_hour=budget))
    world.settle(wanted, seconds=11)
    first = world.asked
    world.come("cheap", first.get("cheap", 0))
    world.come("dear", first.get("dear", 0))
    world.settle(wanted, seconds=300)
    assert world.asked == first
    num_gangs = first.get("cheap", 0) + 2 * first.get("dear", 0)
    if budget is None:
        assert min(wanted, 7) <= num_gangs <= wanted + 1
