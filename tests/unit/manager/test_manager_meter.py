"""The measurement: figures out of readings."""

from __future__ import annotations

import gc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlserve.manager.measurement.figures import Measurements, MoveCost
from rlserve.manager.measurement.meter import Meter
from rlserve.manager.measurement.readings import (
    GroupDone,
    HostPolled,
    MoveDone,
    Reading,
    ReplicaPolled,
    StepDone,
    SyncDone,
)
from rlserve.manager.roles import Role


def step(end_s: float, types: tuple[str, ...] = ("H100", "H100"), **changes: float) -> StepDone:
    """A step of 16 groups that worked 10 s, and waited 1 s for its batch and 1 s for weights."""
    values = {"wait_s": 1.0, "weights_s": 1.0, "work_s": 10.0, "num_groups": 16, "num_tokens": 32_000, **changes}
    return StepDone(end_s=end_s, types=types, **values)


def poll(time_s: float, *, tokens: int, busy_s: float, running_s: float, gang_id: str = "r", **names: str) -> Reading:
    """A replica that has the role since 0."""
    return ReplicaPolled(
        time_s=time_s,
        gang_id=gang_id,
        type=names.get("type", "H200"),
        since_s=0.0,
        num_running=7,
        num_waiting=3,
        kv_cache_usage=0.5,
        num_generated_tokens=tokens,
        busy_s=busy_s,
        running_s=running_s,
    )


def measured(*readings: Reading, now_s: float = 1000.0) -> Measurements:
    """The figures after all readings."""
    meter = Meter()
    for reading in readings:
        meter.note(reading)
    return meter.figures(now_s)


def test_nothing_is_known_before_the_first_reading() -> None:
    assert Meter().figures(0.0) == Measurements()


def test_training_is_measured_by_the_types_of_its_gangs_while_it_computes() -> None:
    figures = measured(
        step(10.0, ("H200", "H100"), work_s=99.0),
        step(22.0, ("H100", "H200")),
        step(34.0, ("H200", "H100"), work_s=6.0),
        step(50.0, ("H100",), work_s=20.0, wait_s=80.0),
    )
    both, one = figures.train
    assert (both.types, both.num_steps, both.last_s) == (("H100", "H200"), 3, 34.0)
    assert both.step_s == 8.0, "the first step warms up, and counts only until there is another"
    assert both.tokens_per_s == 4000.0
    assert (one.step_s, one.tokens_per_s) == (20.0, 1600.0)


@pytest.mark.parametrize("fixed_s", [0.0, 5.0])
def test_what_a_token_adds_to_a_step_is_found_where_batches_differ(fixed_s: float) -> None:
    sizes = (20_000, 40_000, 30_000, 25_000, 35_000)
    (rate,) = measured(
        *(step(12.0 * n, num_tokens=size, work_s=fixed_s + 1e-4 * size) for n, size in enumerate((1, *sizes)))
    ).train
    assert rate.token_s == pytest.approx(1e-4, rel=0.15)
    assert rate.early_s < 0.2
    even, odd = measured(*(step(12.0 * n, work_s=10.0 - n % 2) for n in range(9))), measured(step(0.0))
    assert even.train[0].token_s == pytest.approx(9.5 / 32_000), "in proportion, where they do not differ"
    assert even.train[0].early_s == pytest.approx(0.5)
    assert odd.train[0].early_s == 0.0


def test_recent_steps_replace_old_ones() -> None:
    (rate,) = measured(*(step(12.0 * n, work_s=10.0 if n < 20 else 5.0) for n in range(30))).train
    assert (rate.step_s, rate.num_steps) == (5.0, 30)


def test_waiting_and_weights_are_shares_of_all_the_time() -> None:
    figures = measured(step(12.0), step(24.0, wait_s=3.0, work_s=8.0))
    assert figures.wait_share == pytest.approx(4 / 24)
    assert figures.weights_s == 1.0
    assert figures.trained_tokens_per_group == 2000.0


def test_progress_begins_anew_with_a_move() -> None:
    move = MoveDone(begin_s=24.5, end_s=27.0, gang_id="g", to=Role.ROLLOUT, trainer_pause_s=1.0)
    before = measured(step(12.0), step(24.0)).progress
    assert before is not None
    assert (before.num_steps, before.groups_per_s) == (2, 16 / 12)
    assert before.wait_share == pytest.approx(1 / 12)
    assert measured(step(12.0), step(24.0), move).progress is None
    assert measured(step(12.0), step(24.0), move, step(36.0)).progress is None, "it began before the end of the move"
    after = measured(step(12.0), step(24.0), move, step(36.0), step(48.0, work_s=6.0)).progress
    assert after is not None
    assert (after.num_steps, after.groups_per_s) == (1, 2.0)


def test_a_starved_replica_is_not_a_slow_one() -> None:
    full = measured(*(poll(n, tokens=1000 * n, busy_s=n, running_s=20.0 * n) for n in range(10)), now_s=9.0)
    starved = measured(*(poll(n, tokens=100 * n, busy_s=n / 10, running_s=2.0 * n) for n in range(10)), now_s=9.0)
    (fast,), (idle,) = full.replicas, starved.replicas
    assert fast.tokens_per_s == idle.tokens_per_s == pytest.approx(1000.0)
    assert fast.mean_running == idle.mean_running == pytest.approx(20.0)
    assert (fast.busy_share, idle.busy_share) == (pytest.approx(1.0), pytest.approx(0.1))
    assert (fast.num_running, fast.num_waiting, fast.kv_cache_usage) == (7, 3, 0.5)


def test_the_line_of_step_time_over_batch_is_found_from_several_batches() -> None:
    readings, tokens, busy_s, running_s = [], 0.0, 0.0, 0.0
    for n in range(40):
        batch = 10.0 + n
        readings.append(poll(float(n), tokens=round(tokens), busy_s=busy_s, running_s=running_s))
        tokens, busy_s, running_s = tokens + batch / (0.0065 + 0.00006 * batch), busy_s + 1.0, running_s + batch
    (curve,) = measured(*readings, now_s=39.0).curves
    slope = curve.covariance / curve.batch_variance
    assert curve.type == "H200"
    assert slope == pytest.approx(0.00006, rel=0.01)
    assert curve.mean_step_s - slope * curve.mean_batch == pytest.approx(0.0065, rel=0.01)


def test_a_replica_that_takes_the_role_again_counts_from_there_and_one_that_left_is_forgotten() -> None:
    meter = Meter()
    for n in range(5):
        meter.note(poll(n, tokens=1000 * n, busy_s=n, running_s=20.0 * n))
    meter.note(MoveDone(begin_s=5.0, end_s=6.0, gang_id="r", to=Role.TRAIN, trainer_pause_s=1.0))
    assert meter.figures(6.0).replicas == ()
    assert len(meter.figures(6.0).curves) == 1
    again = poll(20.0, tokens=0, busy_s=0.0, running_s=0.0)
    meter.note(again)
    (rate,) = meter.figures(20.0).replicas
    assert (rate.tokens_per_s, rate.mean_running, rate.busy_share) == (None, None, 0.0)
    assert meter.figures(200.0).replicas == (), "nobody polls it any more"


def test_moves_and_syncs_cost_the_mean_of_the_last_few() -> None:
    def moves(durations: list[float], to: Role) -> list[Reading]:
        return [MoveDone(begin_s=0.0, end_s=each, gang_id="g", to=to, trainer_pause_s=each / 2) for each in durations]

    figures = measured(
        *moves([100.0, 4.0, 4.0, 4.0, 4.0, 9.0], Role.ROLLOUT),
        *moves([3.0], Role.TRAIN),
        SyncDone(end_s=1.0, gang_id="g", duration_s=2.0, pause_s=0.5),
        SyncDone(end_s=2.0, gang_id="g", duration_s=4.0, pause_s=1.5),
    )
    assert figures.move_costs == {
        Role.ROLLOUT: MoveCost(duration_s=5.0, trainer_pause_s=2.5, num_moves=5),
        Role.TRAIN: MoveCost(duration_s=3.0, trainer_pause_s=1.5, num_moves=1),
    }
    assert (figures.sync_s, figures.sync_pause_s) == (3.0, 1.0)


def test_the_busiest_host_counts_as_long_as_it_is_polled() -> None:
    meter = Meter()
    meter.note(HostPolled(time_s=0.0, node="a", busy_share=0.98))
    meter.note(HostPolled(time_s=25.0, node="b", busy_share=0.40))
    assert meter.figures(26.0).host_busy_share == 0.98
    assert meter.figures(40.0).host_busy_share == 0.40
    assert meter.figures(90.0).host_busy_share is None


def test_groups_give_the_kept_share_and_their_length() -> None:
    groups = [GroupDone(time_s=n, kept=n % 4 == 0, num_tokens=1000 + n % 4) for n in range(400)]
    figures = measured(*groups)
    assert figures.kept_share == pytest.approx(0.25, abs=0.01)
    assert 96 <= figures.num_kept_observed <= 192, "of the last ones: the share may drift"
    assert figures.tokens_per_group == pytest.approx(1001.5)


def test_what_is_no_reading_is_refused() -> None:
    with pytest.raises(TypeError, match="nothing is measured by a Reading"):
        Meter().note(Reading())


def num_held(root: object) -> int:
    """Everything that hangs on an object, in objects."""
    to_see, seen = [root], set[int]()
    while to_see:
        each = to_see.pop()
        if id(each) not in seen and not isinstance(each, type):
            seen.add(id(each))
            to_see.extend(gc.get_referents(each))
    return len(seen)


@settings(max_examples=5, deadline=None)
@given(
    num_types=st.integers(1, 300), num_gangs=st.integers(1, 50), shares=st.lists(st.booleans(), min_size=1, max_size=9)
)
def test_figures_are_in_range(num_types: int, num_gangs: int, shares: list[bool]) -> None:
    meter = Meter()
    for n in range(300):
        meter.note(step(12.0 * n, tuple("H100" for _ in range(n % num_types + 1))))
        meter.note(poll(n, tokens=n, busy_s=n / 2, running_s=n, gang_id=f"g{n % num_gangs}"))
        meter.note(GroupDone(time_s=n, kept=shares[n % len(shares)], num_tokens=10))
    figures = meter.figures(300.0)
    assert len(figures.train) <= 64
    assert figures.kept_share is not None
    assert 0.0 <= figures.kept_share <= 1.0
    assert all(0.0 <= replica.busy_share <= 1.0 for replica in figures.replicas)


def test_memory_is_bounded() -> None:
    meter, held = Meter(), list[int]()
    for n in range(6000):
        if n % 50 == 0:
            meter.note(step(12.0 * n, tuple("H100" for _ in range(n // 50 % 100 + 1))))
        meter.note(poll(n, tokens=n, busy_s=n / 2, running_s=n, gang_id=f"g{n % 20}"))
        meter.note(GroupDone(time_s=n, kept=True, num_tokens=10))
        meter.note(MoveDone(begin_s=n, end_s=n, gang_id="x", to=Role.TRAIN, trainer_pause_s=0.0))
        meter.note(SyncDone(end_s=n, gang_id="x", duration_s=0.1, pause_s=0.1))
        if n in (3999, 5999):
            held.append(num_held(meter))
    assert held[1] <= held[0] * 1.05
