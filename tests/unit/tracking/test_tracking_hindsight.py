"""What other splits would have made of a run, and what its moves came to: a run made from known rates."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from known_rates import DECODE, NUM_GROUPS, NUM_SAMPLES, World

from rlserve.tracking.hindsight.comparison import look_back
from rlserve.tracking.hindsight.efficiency import efficiency, oracle_rate
from rlserve.tracking.hindsight.judgement import Judgement, judge
from rlserve.tracking.hindsight.lines import Straight, fitted
from rlserve.tracking.hindsight.rates import Rates, measured_rates
from rlserve.tracking.hindsight.series import Series
from rlserve.tracking.hindsight.splits import Split, split_of, split_pieces
from rlserve.tracking.hindsight.windows import Window, cut_windows
from rlserve.tracking.timeline.ownership import slot_timelines

CONFIG: Any = {"rollout": {"engine": {"max_num_sequences": 64}}}


def judged_run(world: World) -> Judgement:
    return judge(decisions=world.decisions, events=world.events, metrics=(), config=CONFIG)


def test_a_series_towards_one_target_is_judged_as_one() -> None:
    """Generating is the slower side: three slots in rollout in place of one, with a step between the moves."""
    world = World(1)
    world.steps(12)
    world.move(1, now=1.0, after=1.3, target=2)
    world.steps(1)
    world.move(1, now=1.3, after=1.3 * 1.1, target=3)
    world.steps(20)
    judgement = judged_run(world)
    (judged,) = judgement.series
    assert [move.slot_id for move in judged.series.moves] == ["q/1", "s/0"]
    assert judged.series.predicted_change == pytest.approx(1.3 * 1.1 - 1)
    before, after = world.rate(200.0, 1), world.rate(200.0, 3)
    assert judged.rate_before == pytest.approx(before, rel=0.02)
    assert judged.rate_after == pytest.approx(after, rel=0.02)
    assert judged.after is not None
    assert judged.whole is not None
    assert judged.after.change == pytest.approx(after / before - 1, rel=0.05)
    assert judged.after.is_certain
    assert judged.load == pytest.approx(1.0, rel=0.03)
    # Since the first decision: 20 steps at the new rate, one in between, four seconds of moves.
    duration_s = world.now_s - judged.series.begin_s
    assert judged.whole.gain == pytest.approx(21 * NUM_GROUPS - before * duration_s, rel=0.15)
    assert judgement.against_start is not None
    assert judgement.against_start.gain == pytest.approx(judged.whole.gain, rel=0.1)


def test_a_load_that_grows_is_not_taken_for_what_a_move_did() -> None:
    """Three times as many tokens for a kept group: training slows down although the move was right."""
    world = World(2)
    world.steps(12, generated=100.0)
    world.move(1)
    world.steps(12, generated=300.0)
    (judged,) = judged_run(world).series
    assert judged.rate_before is not None
    assert judged.rate_after is not None
    assert judged.rate_after < judged.rate_before
    assert judged.after is not None
    assert judged.after.change == pytest.approx(world.rate(300.0, 3) / world.rate(300.0, 2) - 1, abs=0.03)
    assert judged.load is not None
    assert judged.load > 1.3


def test_what_cannot_be_told_is_not() -> None:
    world = World(1)
    world.steps(1)
    assert judged_run(world) == Judgement(
        series=(), start=None, against_start=None, efficiency=None, shares_processors=False, min_steps=3
    )
    world.move(1)
    world.steps(3)
    early = judged_run(world)
    assert early.against_start is None
    assert early.series[0].after is None
    world.steps(12)
    world.move(-1)
    world.steps(1)
    first, second = judged_run(world).series
    assert first.after is not None
    assert second.after is None, "a single step followed"


def test_noise_widens_what_is_said_until_it_may_be_chance() -> None:
    errors = []
    for noise in (0.0, 0.2, 0.9):
        world = World(3, noise)
        world.steps(15)
        world.move(1)  # the split of the start is as good within a few per cent
        world.steps(15)
        against = judged_run(world).against_start
        assert against is not None
        errors.append(against.error)
    assert errors == sorted(errors)
    assert errors[0] < 0.02
    assert not against.is_certain


def test_moves_apart_or_in_two_directions_are_judged_apart() -> None:
    world = World(1)
    world.steps(12)
    world.move(1)
    world.steps(6)
    world.move(1)
    world.steps(1)
    world.move(-1)
    world.steps(12)
    judgement = judged_run(world)
    assert [len(judged.series.moves) for judged in judgement.series] == [1, 1, 1]
    assert [judged.before for judged in judgement.series] == [
        split_of(5, {"q": 1}),
        split_of(4, {"q": 2}),
        split_of(3, {"q": 2, "s": 1}),
    ]


def test_of_a_move_that_begins_several_a_part_is_its_own() -> None:
    world = World(1)
    world.steps(2)
    world.move(1, now=1.0, after=1.2, target=3)
    world.steps(1)
    world.move(1, now=1.1, after=1.21, target=3)
    (judged,) = judged_run(world).series
    assert judged.series.predicted_change == pytest.approx(1.1 * 1.1 - 1)
    world.move(1)
    (judged,) = judged_run(world).series
    assert judged.series.predicted_change is None, "one of them was not predicted"


def test_the_best_split_and_the_oracle_are_found_under_drift() -> None:
    world = World(3)
    world.steps(20, generated=400.0)
    world.steps(20, generated=100.0)
    found = judged_run(world).efficiency
    assert found is not None
    spent = {n: 19 / world.rate(400.0, n) + 20 / world.rate(100.0, n) for n in range(1, 6)}
    best = min(spent, key=lambda n: spent[n])
    assert found.best_static_num_rollout == best
    assert found.best_static == pytest.approx(39 / spent[best], rel=0.05)
    assert found.realised == pytest.approx(39 / spent[3], rel=0.01)
    assert found.oracle > found.best_static


def test_groups_that_went_into_the_buffer_were_generated_too() -> None:
    """In the first half as many groups go into the buffer as are trained, so one took half the tokens."""
    world = World(2)
    world.steps(31, generated=200.0)
    filled = {step: 10.0 * min(step, 16) for step in range(1, 32)}
    pieces = split_pieces(slot_timelines(world.events, world.now_s))
    windows = cut_windows(world.events, pieces, filled, {})
    assert [window.generated_tokens for window in windows] == pytest.approx([100.0] * 5 + [200.0] * 5)
    assert all(window.splits == ((split_of(4, {"q": 2}), 1.0),) for window in windows)
    assert [window.generated_tokens for window in cut_windows(world.events, pieces, {}, {})] == pytest.approx(
        [200.0] * 10
    )


@pytest.mark.parametrize(("num_waiting", "max_batch"), [(3.0, NUM_SAMPLES / 4), (0.0, 64.0)])
def test_replicas_ran_as_many_samples_as_they_can_only_where_groups_waited(
    num_waiting: float, max_batch: float
) -> None:
    """With four slots in rollout, a quarter of the samples each."""
    world = World(4)
    world.steps(12)
    rows = slot_timelines(world.events, world.now_s)
    windows = cut_windows(world.events, split_pieces(rows), {}, dict.fromkeys(range(1, 13), num_waiting))
    rates = measured_rates(rows, world.events, windows, max_batch=64.0)
    assert rates is not None
    assert rates.max_batch == pytest.approx(max_batch, rel=0.02)


@pytest.mark.parametrize(("slope", "base"), [(2.0, 1.0), (0.0, 3.0), (1.5, 0.0)])
def test_a_line_is_found_where_x_varies(slope: float, base: float) -> None:
    points = [(x, base + slope * x, 1.0) for x in (1.0, 5.0, 20.0, 100.0)]
    found = fitted(points, proportional=0.5)
    assert found.at(50.0) == pytest.approx(base + slope * 50.0, rel=0.03)


def test_without_variation_the_believed_share_grows() -> None:
    assert fitted([(4.0, 8.0, 1.0)], proportional=0.5) == Straight(base=4.0, slope=1.0)


positive = st.floats(0.1, 100)


@given(
    st.lists(st.sampled_from(["q", "s"]), min_size=2, max_size=8),
    st.builds(
        Window,
        begin_s=st.just(0.0),
        end_s=positive,
        num_steps=st.just(3),
        num_groups=st.integers(1, 100),
        generated_tokens=positive,
        trained_tokens=positive,
        overhead_s=st.floats(0.0, 1.0),
        pause_s=st.just(0.0),
        num_waiting=st.just(0.0),
        splits=st.just(((Split(num_train=1, rollout=(("q", 1),)), 1.0),)),
    ),
    positive,
    positive,
)
def test_no_split_is_above_the_oracle(gangs: list[str], window: Window, num_samples: float, max_batch: float) -> None:
    rates = Rates(
        decoding=DECODE, training=Straight(base=0.001, slope=0.1), num_samples=num_samples, max_batch=max_batch
    )
    hindsight = look_back(rates, [window] * 3, gangs)
    assert hindsight is not None
    oracle = oracle_rate(hindsight, window)
    for number in range(1, len(gangs)):
        assert rates.of(window, rates.by_type(number, gangs)) <= oracle * (1 + 1e-6)
    found = efficiency(hindsight)
    assert found is not None
    assert found.best_static <= found.oracle * (1 + 1e-6)


@given(st.lists(st.one_of(st.integers(1, 6), st.sampled_from([-1.0, 1.0])), max_size=14))
def test_every_move_is_in_one_series_and_series_follow_each_other(parts: list[float]) -> None:
    world, num_moves = World(3), 0
    for part in parts:
        if isinstance(part, int):
            world.steps(part)
        elif 1 <= world.num_rollout + part <= 5:
            world.move(int(part))
            num_moves += 1
    judgement = judged_run(world)
    found: list[Series] = [judged.series for judged in judgement.series]
    assert sum(len(series.moves) for series in found) == num_moves
    for series in found:
        assert len({move.action for move in series.moves}) == 1
        assert series.begin_s <= series.end_s <= series.until_s
    for before, after in pairwise(found):
        assert before.until_s <= after.begin_s
