"""How many replicas are wanted: bounds, windows, cooldowns, schedules, and what holds for every load."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlserve.errors import ConfigurationError
from rlserve.serving.config import ServeConfig, ServedModelConfig
from rlserve.serving.scaling.base import Cause, LoadSample, ScalingObservation, ScalingPlan
from rlserve.serving.scaling.config import ScalingConfig, ScheduledRangeConfig, TargetsConfig
from rlserve.serving.scaling.schedule import bounds_at
from rlserve.serving.scaling.targets import TargetState, TargetTracking

LOAD_ALONE = TargetsConfig(load=0.5, kv_cache_usage=None)
CONFIG = ScalingConfig(
    enabled=True,
    max_replicas=6,
    targets=LOAD_ALONE,
    scale_up_window_s=0,
    scale_down_window_s=30,
    scale_up_cooldown_s=5,
    scale_down_cooldown_s=20,
)
MODEL = ServedModelConfig(path="m")
PLACES = 10
"""Answers that a replica computes at once: with the target, 5 answers are the work of one."""


def sample(time_s: float, num_live: int, num_ready: int = 1, **others: float) -> LoadSample:
    return LoadSample(
        time_s=time_s,
        num_ready=num_ready,
        num_live_samples=num_live,
        num_places=PLACES * num_ready,
        **others,  # type: ignore[arg-type]
    )


def observed(*samples: LoadSample, num_wanted: int = 1, most: int = 10, unix_s: float = 0.0) -> ScalingObservation:
    return ScalingObservation(
        time_s=samples[-1].time_s, unix_s=unix_s, num_wanted=num_wanted, most=most, samples=samples
    )


def follow(config: ScalingConfig, loads: Sequence[int], *, at_first: int = 1) -> list[ScalingPlan]:
    """A decision a second, each carried out at once."""
    policy, plans = TargetTracking(config), []
    state, wanted = policy.initial_state(), at_first
    samples: list[LoadSample] = []
    for second, load in enumerate(loads):
        samples.append(sample(second, load, wanted))
        plan, state = policy.decide(observed(*samples, num_wanted=wanted), state)
        wanted = plan.num_replicas
        plans.append(plan)
    return plans


def wanted_by(config: ScalingConfig, loads: Sequence[int], *, at_first: int = 1) -> list[int]:
    return [plan.num_replicas for plan in follow(config, loads, at_first=at_first)]


def test_load_that_comes_is_answered_and_load_that_goes_waits_for_the_window() -> None:
    plans = follow(CONFIG, [2, 14, 14, 14, 14, 14, 14] + [2] * 60)
    wanted = [plan.num_replicas for plan in plans]
    assert wanted[:7] == [1, 2, 2, 2, 2, 2, 3]  # twice as many at most, and then the cooldown
    assert plans[2].cause is Cause.COOLDOWN
    assert wanted[7:36] == [3] * 29
    assert (wanted[36], plans[36].cause, wanted[-1]) == (1, Cause.LOAD, 1)
    assert plans[20].cause is Cause.WINDOW


def test_a_peak_shorter_than_the_window_is_let_pass() -> None:
    config = replace(CONFIG, scale_up_window_s=10)
    assert set(wanted_by(config, [2] * 20 + [20] + [2] * 20)) == {1}


def test_replicas_that_start_are_not_asked_for_twice() -> None:
    plan, _ = TargetTracking(CONFIG).decide(observed(sample(9, 14), num_wanted=3), TargetState())
    assert (plan.num_replicas, plan.cause) == (3, Cause.STEADY)


def test_several_metrics() -> None:
    targets = TargetsConfig(load=0.5, kv_cache_usage=0.5, num_waiting=2, time_to_first_token_s=0.5)
    several = replace(CONFIG, targets=targets, max_growth=10)
    load = sample(0, 5, 1, kv_cache_usage=0.4, num_waiting=8, time_to_first_token_s=1.0)
    for combine, expected in (("any", (4, Cause.NUM_WAITING)), ("all", (1, Cause.STEADY))):
        policy = TargetTracking(replace(several, combine=combine))  # type: ignore[arg-type]
        plan, _ = policy.decide(observed(load), policy.initial_state())
        assert (plan.num_replicas, plan.cause) == expected
    assert plan.numbers["demand/time_to_first_token_s"] == 2
    assert plan.numbers["demand/kv_cache_usage"] == pytest.approx(0.8)


def test_what_is_not_known_decides_nothing() -> None:
    config = replace(CONFIG, targets=TargetsConfig(load=None, kv_cache_usage=0.5))
    plan, _ = TargetTracking(config).decide(observed(sample(0, 500), num_wanted=3), TargetState())
    assert (plan.num_replicas, plan.cause) == (3, Cause.UNKNOWN)
    plan, _ = TargetTracking(CONFIG).decide(observed(sample(0, 500, 0), num_wanted=3), TargetState())
    assert (plan.num_replicas, plan.cause) == (3, Cause.UNKNOWN)


def test_bounds_count_at_once() -> None:
    policy = TargetTracking(replace(CONFIG, min_replicas=3))
    plan, state = policy.decide(observed(sample(0, 0), num_wanted=1), policy.initial_state())
    assert (plan.num_replicas, plan.cause) == (3, Cause.FLOOR)
    plan, _ = policy.decide(observed(sample(1, 0, 3), num_wanted=3, most=2), state)
    assert (plan.num_replicas, plan.cause) == (2, Cause.CEILING)


BERLIN = ZoneInfo("Europe/Berlin")
OFFICE = ScheduledRangeConfig(days="mon-fri", hours="08:00-18:30", min_replicas=3)
NIGHT = ScheduledRangeConfig(days="fri,sat", hours="22:00-06:00", min_replicas=1, max_replicas=2)


@pytest.mark.parametrize(
    ("when", "bounds"),
    [
        (datetime(2026, 7, 6, 8, 0, tzinfo=BERLIN), (3, 6)),  # a Monday
        (datetime(2026, 7, 6, 18, 30, tzinfo=BERLIN), (1, 6)),
        (datetime(2026, 7, 6, 6, 30, tzinfo=UTC), (3, 6)),  # half past eight in Berlin
        (datetime(2026, 1, 5, 6, 30, tzinfo=UTC), (1, 6)),  # in winter half past seven
        (datetime(2026, 7, 5, 12, 0, tzinfo=BERLIN), (1, 6)),  # a Sunday
        (datetime(2026, 7, 10, 23, 0, tzinfo=BERLIN), (1, 2)),
        (datetime(2026, 7, 12, 5, 59, tzinfo=BERLIN), (1, 2)),  # the night that began on Saturday
        (datetime(2026, 7, 10, 5, 59, tzinfo=BERLIN), (1, 6)),
    ],
)
def test_bounds_by_hour(when: datetime, bounds: tuple[int, int]) -> None:
    config = replace(CONFIG, schedule=(OFFICE, NIGHT), time_zone="Europe/Berlin")
    assert bounds_at(config, when.timestamp(), most=10) == bounds
    assert bounds_at(config, when.timestamp(), most=2) == (min(bounds[0], 2), 2)


def test_days_go_round_the_week() -> None:
    window = ScheduledRangeConfig(days="sat-mon", hours="00:00-24:00", min_replicas=2)
    config = replace(CONFIG, schedule=(window,))
    days = [bounds_at(config, datetime(2026, 7, 6 + day, 12, tzinfo=UTC).timestamp(), 10)[0] for day in range(7)]
    assert days == [2, 1, 1, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: ScheduledRangeConfig(hours="8-18", min_replicas=1), "hours"),
        (lambda: ScheduledRangeConfig(hours="08:00-18:00", days="monday", min_replicas=1), "days"),
        (lambda: ScheduledRangeConfig(hours="08:00-18:00", min_replicas=3, max_replicas=2), "max_replicas"),
        (lambda: ScalingConfig(time_zone="Mars/Olympus"), "time_zone"),
        (lambda: ScalingConfig(min_replicas=3, max_replicas=2), "max_replicas"),
        (lambda: ServeConfig(model=MODEL, num_replicas=7, scaling=CONFIG), "num_replicas"),
        (lambda: TargetsConfig(kv_cache_usage=1.5), "kv_cache_usage"),
    ],
)
def test_what_cannot_be_meant_is_refused(make: object, key: str) -> None:
    with pytest.raises(ConfigurationError, match=key):
        make()  # type: ignore[operator]


LOADS = st.lists(st.integers(0, 60), min_size=1, max_size=80)
CONFIGS = st.builds(
    ScalingConfig,
    min_replicas=st.integers(1, 3),
    max_replicas=st.integers(3, 8),
    targets=st.just(LOAD_ALONE),
    tolerance=st.sampled_from([0.0, 0.1, 0.5]),
    max_growth=st.sampled_from([1.5, 2.0, 9.0]),
    scale_up_window_s=st.sampled_from([0, 3, 10]),
    scale_down_window_s=st.sampled_from([0, 5, 20]),
    scale_up_cooldown_s=st.sampled_from([0, 2, 9]),
    scale_down_cooldown_s=st.sampled_from([0, 4, 15]),
)


@given(config=CONFIGS, loads=LOADS, at_first=st.integers(1, 12))
def test_never_outside_the_bounds(config: ScalingConfig, loads: list[int], at_first: int) -> None:
    assert config.max_replicas is not None
    for wanted in wanted_by(config, loads, at_first=at_first):
        assert config.min_replicas <= wanted <= config.max_replicas


@given(config=CONFIGS, loads=LOADS)
def test_no_change_within_its_cooldown(config: ScalingConfig, loads: list[int]) -> None:
    wanted = wanted_by(config, loads, at_first=config.min_replicas)
    changes = [
        (second, after - before) for second, (before, after) in enumerate(itertools.pairwise(wanted)) if after != before
    ]
    for (earlier_s, _), (later_s, change) in itertools.pairwise(changes):
        rest_s = config.scale_up_cooldown_s if change > 0 else config.scale_down_cooldown_s
        assert later_s - earlier_s >= rest_s


@given(config=CONFIGS, load=st.integers(0, 60), at_first=st.integers(1, 8))
def test_a_load_that_stays_moves_the_number_one_way_only(config: ScalingConfig, load: int, at_first: int) -> None:
    wanted = wanted_by(config, [load] * 100, at_first=min(max(at_first, config.min_replicas), config.max_replicas or 8))
    assert wanted in (sorted(wanted), sorted(wanted, reverse=True))
    assert len(set(wanted[-20:])) == 1


@given(
    config=CONFIGS, loads=LOADS, more=st.lists(st.integers(0, 20), min_size=80, max_size=80), wanted=st.integers(1, 8)
)
def test_more_load_never_asks_for_fewer(config: ScalingConfig, loads: list[int], more: list[int], wanted: int) -> None:
    """Of two servers with as many replicas, the one that had more to do all the time."""
    policy, asked = TargetTracking(config), []
    for added in ([0] * len(loads), more):
        state = policy.initial_state()
        samples = [
            sample(second, load + extra, wanted) for second, (load, extra) in enumerate(zip(loads, added, strict=False))
        ]
        for number in range(1, len(samples) + 1):
            plan, state = policy.decide(observed(*samples[:number], num_wanted=wanted), state)
            state = replace(state, changed_s=None)
        asked.append(plan.num_replicas)
    assert asked[0] <= asked[1]


def test_deciding_changes_nothing_but_the_state() -> None:
    policy, seen = TargetTracking(CONFIG), observed(sample(0, 14))
    first = policy.decide(seen, policy.initial_state())
    assert first == policy.decide(seen, policy.initial_state())
    assert first[0].reason == "load asks for 2.80"
