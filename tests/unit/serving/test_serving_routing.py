"""Which replica answers, and what gives way when there is too much to do."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlserve.serving.config import DegradationConfig, RoutingConfig
from rlserve.serving.degradation import Level, Load, level_of
from rlserve.serving.routing.base import ReplicaLoad, RoutedRequest
from rlserve.serving.routing.consistent_hash import NEVER_MANY, ConsistentHash
from rlserve.serving.routing.factory import create_policy
from rlserve.serving.routing.least_load import LeastLoad
from rlserve.serving.routing.measured_speed import MeasuredSpeed
from rlserve.serving.routing.round_robin import RoundRobin


def loads(*numbers: int, speeds: tuple[float | None, ...] = ()) -> list[ReplicaLoad]:
    given_speeds = speeds or (None,) * len(numbers)
    return [
        ReplicaLoad(name=str(place), num_samples=number, tokens_per_s=speed)
        for place, (number, speed) in enumerate(zip(numbers, given_speeds, strict=True))
    ]


def request(number: int = 0, affinity: str = "") -> RoutedRequest:
    return RoutedRequest(number=number, affinity=affinity)


@pytest.mark.parametrize("policy", ["least_load", "round_robin", "consistent_hash", "measured_speed"])
@given(numbers=st.lists(st.integers(0, 99), min_size=1, max_size=5), number=st.integers(0, 9), key=st.text(max_size=4))
def test_one_of_them_is_chosen(policy: str, numbers: list[int], number: int, key: str) -> None:
    chosen = create_policy(RoutingConfig(policy=policy))  # type: ignore[arg-type]
    found = loads(*numbers)
    name = chosen.choose(request(number, key), found)
    assert name in {load.name for load in found}
    assert chosen.choose(request(number, key), found) == name


def test_in_turn() -> None:
    assert [RoundRobin().choose(request(number), loads(9, 0, 5)) for number in range(4)] == ["0", "1", "2", "0"]


def test_the_least_loaded() -> None:
    assert LeastLoad().choose(request(), loads(3, 1, 2)) == "1"
    assert {LeastLoad().choose(request(number), loads(1, 1, 2)) for number in range(4)} == {"0", "1"}


def test_the_soonest_done() -> None:
    policy = MeasuredSpeed()
    assert policy.choose(request(), loads(2, 1, speeds=(300.0, 100.0))) == "0"
    assert policy.choose(request(), loads(6, 1, speeds=(300.0, 100.0))) == "1"
    assert policy.choose(request(), loads(1, 0, speeds=(100.0, None))) == "1"


def test_what_begins_alike_stays_together() -> None:
    policy, idle = ConsistentHash(1.5), loads(0, 0, 0, 0)
    homes = {key: policy.choose(request(affinity=key), idle) for key in map(str, range(400))}
    assert min(Counter(homes.values()).values()) > 50
    fewer = [load for load in idle if load.name != "2"]
    moved = {key for key, home in homes.items() if policy.choose(request(affinity=key), fewer) != home}
    assert moved == {key for key, home in homes.items() if home == "2"}


def test_a_busy_home_is_passed_over() -> None:
    policy = ConsistentHash(1.5)
    home = policy.choose(request(affinity="key"), loads(0, 0))
    busy = loads(*(9 if str(place) == home else 0 for place in range(2)))
    assert policy.choose(request(affinity="key"), busy) != home


def test_a_home_with_little_to_do_is_kept_whatever_the_others_have() -> None:
    policy = ConsistentHash(1.5)
    home = policy.choose(request(affinity="key"), loads(0, 0, 0, 0))
    little = loads(*(NEVER_MANY - 1 if str(place) == home else 0 for place in range(4)))
    assert policy.choose(request(affinity="key"), little) == home


@pytest.mark.parametrize(
    ("num_live", "num_ready", "expected"),
    [
        (0, 2, Level.NORMAL),
        (31, 2, Level.NORMAL),
        (32, 2, Level.SHORTENED),
        (32, 1, Level.SHORTENED),
        (64, 1, Level.REFUSING),
        (0, 0, Level.REFUSING),
    ],
)
def test_levels(num_live: int, num_ready: int, expected: Level) -> None:
    config = DegradationConfig(shorten_at=2, refuse_at=8)
    load = Load(num_live_samples=num_live, num_places=8 * num_ready)
    assert level_of(load, config) is expected
