"""The end of a run: what the last groups take, and which split has them done first."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rlserve.manager.prediction.finish import Change, WorkLeft, seconds_left
from rlserve.manager.prediction.fluid import Flows, at_stock

STOCKS = np.linspace(0.0, 160.0, 17)


def flows(generated: tuple[float, ...], trained: tuple[float, ...], *, full: float = 40.0) -> Flows:
    """Rollout makes less of fewer than ``full`` groups under way."""
    under_way = np.minimum((STOCKS[-1] - STOCKS) / full, 1.0)
    return Flows(
        stocks=STOCKS,
        generated=np.array(generated)[:, None] * under_way,
        trained=np.array(trained),
        balanced=np.minimum(generated, trained),
    )


LEFT = WorkLeft(num_groups=160.0, prompts_per_step=16, kept_share=1.0)
NO_COST = np.zeros((1, 1))


def seconds(each: Flows, stock: float, left: WorkLeft = LEFT, cost_s: float = 0.0) -> list[float]:
    """By split."""
    costs_s = cost_s * (1.0 - np.eye(len(each.trained)))
    return [float(found) for found in at_stock(each, seconds_left(each, left, costs_s=costs_s)[-1], stock)]


def test_training_that_never_waits_takes_what_its_steps_take() -> None:
    (found_s,) = seconds(flows((5.0,), (2.0,)), stock=160.0)
    assert found_s == pytest.approx((160 + 16) / 2.0), "the last step of 16 groups is to come"


def test_rollout_that_is_behind_sets_the_pace_once_the_stock_is_used_up() -> None:
    (without_s,), (with_s,) = (seconds(flows((1.0,), (2.0,)), stock=stock) for stock in (0.0, 80.0))
    assert without_s > 160 / 1.0, "and the last groups take longer"
    assert with_s == pytest.approx(without_s - 80 / 1.0, rel=0.05)


def test_the_fewer_groups_are_under_way_the_less_replicas_make_of_them() -> None:
    narrow, wide = (seconds(flows((1.0,), (2.0,), full=full), stock=0.0)[0] for full in (10.0, 80.0))
    assert narrow < 0.9 * wide
    dropped = seconds(flows((1.0,), (2.0,), full=80.0), stock=0.0, left=replace(LEFT, kept_share=0.25))
    assert dropped[0] < wide, "four times as many groups are under way for the same number to train"


def test_with_all_of_it_in_stock_gangs_train_and_with_none_they_roll_out() -> None:
    two = flows((1.0, 2.0), (3.0, 1.8))
    training, rolling = seconds(two, stock=160.0)
    assert training < rolling
    training, rolling = seconds(two, stock=0.0)
    assert rolling < training


def test_a_move_that_takes_longer_than_it_saves_is_not_counted_on() -> None:
    two = flows((1.0, 2.0), (3.0, 1.8))
    for stock in (0.0, 80.0, 160.0):
        cheap, dear = seconds(two, stock), seconds(two, stock, cost_s=1e6)
        alone = [seconds(flows((made,), (trained,)), stock)[0] for made, trained in ((1.0, 3.0), (2.0, 1.8))]
        assert dear == pytest.approx(alone), "each stays what it is"
        assert all(each <= found for each, found in zip(cheap, dear, strict=True))


def test_a_load_that_will_soon_be_another_counts_as_that_one() -> None:
    heavy, light = flows((1.0,), (2.0,)), flows((4.0,), (2.0,))
    then = seconds_left(light, LEFT, costs_s=NO_COST)
    found = [
        float(seconds_left(heavy, LEFT, costs_s=NO_COST, change=Change(seconds=then, mean_s=mean_s))[-1][0, 0])
        for mean_s in (1e-3, 60.0, 1e9)
    ]
    unchanged_s = float(seconds_left(heavy, LEFT, costs_s=NO_COST)[-1][0, 0])
    assert found == sorted(found)
    assert found[2] == pytest.approx(unchanged_s)
    assert found[0] == pytest.approx(float(then[-2][0, 0]) + 16 / 1.0, rel=0.05), "from the second stage on"


def test_however_many_steps_are_left_there_are_few_stages() -> None:
    many = replace(LEFT, num_groups=16.0 * 1000)
    found = seconds_left(flows((5.0,), (2.0,)), many, costs_s=NO_COST)
    assert len(found) == 33
    assert found[-1][0, -1] == pytest.approx((16_000 + 16) / 2.0, rel=0.01)
