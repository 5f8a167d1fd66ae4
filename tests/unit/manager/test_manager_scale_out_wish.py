"""How many more gangs a run has use for: by the queue, by clients, by rates."""

from __future__ import annotations

from dataclasses import replace

import pytest
from manager_builders import H100, make_observation, make_pool
from rate_world import World, gangs_of

from rlserve.manager.measurement.figures import Measurements, ReplicaRate
from rlserve.manager.policies.base import Observation
from rlserve.manager.policies.rate_memory import RateState, note_observation
from rlserve.manager.scale_out.base import NodeType, Terms
from rlserve.manager.scale_out.wish import Wish, wish_of

MORE = NodeType(name="more", num_gangs=1, num_slots=1, max_nodes=4, price_per_hour=1.0, figures=H100)
TERMS = Terms(
    types=(MORE,), grow_after_s=0.0, shrink_after_s=0.0, cooldown_s=0.0, node_timeout_s=60.0, retry_after_s=60.0
)


def a_replica(gang_id: str, num_samples: int) -> ReplicaRate:
    return ReplicaRate(
        gang_id=gang_id,
        type="test",
        num_running=num_samples,
        num_waiting=0,
        kv_cache_usage=0.5,
        busy_share=1.0,
        tokens_per_s=None,
        mean_running=None,
    )


def pool_with(num_more: int, queue_length: int | None, **changes: object) -> Observation:
    """Two train and two roll out, beside those that have come; eight prompt groups fit a replica."""
    grown = [replace(gang, type="more", id=f"more{index}") for index, gang in enumerate(make_pool(0, num_more))]
    return replace(make_observation((*make_pool(2, 2), *grown), queue_length), **changes)


def by_queue(observation: Observation) -> Wish:
    return wish_of(observation, RateState(), TERMS, {"more": 0}, other_price_per_hour=4.0)


@pytest.mark.parametrize(("queue_length", "wanted"), [(1, 2), (8, 2), (9, 3), (100, 14)])
def test_as_many_more_as_would_take_all_that_wait_while_the_trainer_waits(queue_length: int, wanted: int) -> None:
    assert by_queue(pool_with(1, queue_length, trainer_waiting=True)).num_gangs == wanted
    waits = Measurements(wait_share=0.2)
    assert by_queue(pool_with(1, queue_length, measured=waits)).num_gangs == wanted


def test_no_more_than_there_are_where_the_trainer_waits_for_nothing() -> None:
    assert by_queue(pool_with(1, 100, measured=Measurements(wait_share=0.01))).num_gangs == 1


def test_fewer_where_nothing_waits_and_others_have_room() -> None:
    busy = Measurements(replicas=(a_replica("r0", 60), a_replica("r1", 30), a_replica("more0", 30)))
    assert by_queue(pool_with(3, 0, measured=busy)).num_gangs == 0, "two of five replicas hold 120 samples"
    busier = Measurements(replicas=tuple(a_replica(f"r{number}", 64) for number in range(4)))
    assert by_queue(pool_with(3, 0, measured=busier)).num_gangs == 2


def test_clients_that_wait_count_whatever_the_trainer_does() -> None:
    assert by_queue(pool_with(1, 0, client_queue=8.5)).num_gangs == 3


def test_nothing_is_said_where_the_queue_is_not_known() -> None:
    assert by_queue(pool_with(1, None)).num_gangs is None


def by_rates(min_return: float, *, price: float | None, other_price: float | None) -> Wish:
    """A pool that trains twice as much with twice the gangs."""
    world = World(gangs_of(4, 4))
    observation = world.observe()
    terms = replace(
        TERMS, types=(replace(MORE, name="H100-spot", price_per_hour=price),), by_rates=True, min_return=min_return
    )
    memory = note_observation(RateState(), observation)
    return wish_of(observation, memory, terms, {"H100-spot": 0}, other_price_per_hour=other_price)


def test_nodes_are_wanted_as_long_as_each_brings_its_share_of_what_it_costs() -> None:
    assert by_rates(0.5, price=1.0, other_price=8.0).num_gangs == 4
    assert by_rates(1.2, price=1.0, other_price=8.0).num_gangs < 4
    assert by_rates(1.2, price=0.4, other_price=8.0).num_gangs == 4, "at a spot machine's price they bring it"
    assert by_rates(1.2, price=4.0, other_price=8.0).num_gangs == 0


def test_without_prices_slots_are_what_is_paid() -> None:
    assert by_rates(0.5, price=None, other_price=None).num_gangs == 4
    assert by_rates(2.5, price=None, other_price=8.0).num_gangs == 0


def test_where_too_little_is_measured_the_queue_decides() -> None:
    terms = replace(TERMS, by_rates=True)
    wish = wish_of(pool_with(0, 16, trainer_waiting=True), RateState(), terms, {"more": 0}, other_price_per_hour=None)
    assert wish.num_gangs == 2
