"""Paced slots on a clock that only sleeping moves: all ends when the model says, and what does not is counted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rlserve.engine.config import EngineConfig
from rlserve.engine.stats.step_work import StepWork
from rlserve.pool.pacing.base import Activity, ActivityTimes, Pacing
from rlserve.pool.pacing.config import PacingConfig
from rlserve.pool.pacing.factory import create_pace, paced_engine, run_costs
from rlserve.pool.pacing.roofline_pace import RooflinePace
from rlserve.pool.pacing.unpaced import Unpaced
from rlserve.pool.pacing.verdict import PacingBook
from rlserve.roofline.accelerators import GPU_TYPES, slot_type
from rlserve.trainers.algorithms.config import GRPOConfig, PPOConfig
from rlserve.trainers.backends.config import TorchTrainerConfig

COSTS = run_costs(PacingConfig(), GRPOConfig(), TorchTrainerConfig(), tensor_parallel_size=1)
H100 = slot_type("paced-H100")
WORK = StepWork(num_samples=8, num_kv_tokens=100, num_prefill_tokens=16)
STEP_S = COSTS.engine_step_s(H100, num_samples=8, num_kv_tokens=100, num_prefill_tokens=16)


class SleepingClock:
    """Real seconds, which pass where somebody sleeps or works."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds


@pytest.fixture
def clock() -> SleepingClock:
    return SleepingClock()


@pytest.fixture
def pace(clock: SleepingClock) -> RooflinePace:
    pacing = Pacing(slot_type=H100, costs=COSTS, dilation=0.5)
    return RooflinePace(pacing, clock=clock, sleep=clock.sleep)


def test_a_paced_type_is_a_process_with_the_figures_of_its_accelerator() -> None:
    assert replace(H100, name="H100", device="cuda") == GPU_TYPES["H100"]
    assert H100.device == "cpu"


def test_a_training_step_ends_when_the_model_says(pace: RooflinePace, clock: SleepingClock) -> None:
    step_s = COSTS.train_step_s([H100] * 4, 10_000)
    start_s = pace.now_s()
    with pace.stepping(num_ranks=4, num_tokens=10_000):
        clock.now_s += 0.25
    assert pace.now_s() - start_s == pytest.approx(step_s)
    assert clock.slept == [pytest.approx(step_s * 0.5 - 0.25)]
    times = pace.account()[Activity.TRAIN_STEP]
    assert times.computed_s == pytest.approx(0.5)
    assert (times.number, times.late_s) == (1, pytest.approx(0.0))


def test_what_takes_longer_than_modelled_is_late(pace: RooflinePace, clock: SleepingClock) -> None:
    modelled_s = COSTS.reshard_s([H100] * 5, 4)
    with pace.resharding(num_ranks=5, num_before=4):
        clock.now_s += (modelled_s + 2.0) * 0.5
    assert clock.slept == []
    assert pace.account()[Activity.RESHARD].late_s == pytest.approx(2.0)


def test_what_fails_is_not_held_up_and_not_counted(pace: RooflinePace, clock: SleepingClock) -> None:
    with pytest.raises(RuntimeError), pace.receiving():
        raise RuntimeError("lost")
    assert clock.slept == []
    assert pace.account() == {}


@pytest.mark.parametrize(
    ("method", "seconds"),
    [
        ("waking", COSTS.wake_s(H100)),
        ("freeing", COSTS.sleep_s(H100)),
        ("receiving", COSTS.weights_s(H100)),
        ("copying", COSTS.snapshot_s(H100)),
    ],
)
def test_every_part_of_a_move_has_its_time(
    pace: RooflinePace, clock: SleepingClock, method: str, seconds: float
) -> None:
    with getattr(pace, method)():
        pass
    assert clock.slept == [pytest.approx(seconds * 0.5)]


def test_steps_of_an_engine_follow_each_other_on_the_modelled_clock(pace: RooflinePace, clock: SleepingClock) -> None:
    steps, start_s = pace.engine_steps(), pace.now_s()
    for number in range(1, 6):
        begin_s = pace.now_s()
        clock.now_s += 0.002  # computing
        steps.computed(begin_s, WORK)
        clock.now_s += steps.left_s() + 0.003  # woken up late
        steps.ended(goes_on=number < 5)
    assert pace.now_s() - start_s == pytest.approx(5 * STEP_S + 0.003 / 0.5), "lateness does not add up"
    times = pace.account()[Activity.ENGINE_STEP]
    assert times.number == 5
    assert times.modelled_s == pytest.approx(5 * STEP_S)
    assert times.late_s == pytest.approx(0.003 / 0.5)


def test_an_engine_that_waited_for_work_has_nothing_to_catch_up_with(pace: RooflinePace, clock: SleepingClock) -> None:
    steps = pace.engine_steps()
    steps.computed(pace.now_s(), WORK)
    clock.now_s += steps.left_s()
    steps.ended(goes_on=False)
    clock.now_s += 0.1
    steps.computed(pace.now_s(), WORK)
    assert steps.left_s() == pytest.approx(STEP_S * 0.5)
    assert pace.account()[Activity.ENGINE_STEP].late_s == pytest.approx(0.0)


def test_more_than_a_step_is_not_caught_up_with_but_counted(pace: RooflinePace, clock: SleepingClock) -> None:
    steps = pace.engine_steps()
    steps.computed(pace.now_s(), WORK)
    clock.now_s += (3 * STEP_S) * 0.5
    steps.ended(goes_on=True)
    steps.computed(pace.now_s(), WORK)
    assert steps.left_s() == pytest.approx(STEP_S * 0.5)
    assert pace.account()[Activity.ENGINE_STEP].late_s == pytest.approx(2 * STEP_S)


def test_a_step_that_is_broken_off_counts_for_what_it_took(pace: RooflinePace, clock: SleepingClock) -> None:
    steps = pace.engine_steps()
    steps.computed(pace.now_s(), WORK)
    clock.now_s += STEP_S * 0.5 / 4
    steps.ended(goes_on=False)
    assert pace.account()[Activity.ENGINE_STEP].modelled_s == pytest.approx(STEP_S / 4)


def test_other_slots_are_held_up_by_nothing() -> None:
    pace = create_pace(None)
    assert isinstance(pace, Unpaced)
    assert (pace.account(), pace.engine_steps()) == (None, None)
    assert isinstance(create_pace(Pacing(slot_type=H100, costs=COSTS, dilation=1.0)), RooflinePace)


def test_the_work_of_training_follows_from_the_algorithm() -> None:
    assert COSTS.num_train_passes == pytest.approx(1.0)
    trainer = TorchTrainerConfig()
    ppo = run_costs(PacingConfig(), PPOConfig(), trainer, tensor_parallel_size=1)
    assert (ppo.num_trained_networks, ppo.num_train_passes) == (2, pytest.approx(2 + 1 / 3))  # values are read first
    algorithm = PPOConfig(num_mini_batches=2)
    shared = run_costs(PacingConfig(), algorithm, TorchTrainerConfig(critic_trunk="shared"), tensor_parallel_size=1)
    assert (shared.num_trained_networks, shared.num_train_passes) == (1, pytest.approx(1 + 1 / 3))  # all in one pass
    algorithm = GRPOConfig(num_epochs=2, kl_loss_coefficient=0.1)
    twice = run_costs(PacingConfig(), algorithm, trainer, tensor_parallel_size=1)
    assert twice.num_train_passes == pytest.approx(2 + 2 / 3)  # old log-probabilities and the reference


def test_the_cache_of_a_paced_engine_is_that_of_the_accelerator_unless_the_run_says() -> None:
    pacing = Pacing(slot_type=H100, costs=COSTS, dilation=1.0)
    found = paced_engine(EngineConfig(block_size=4), pacing)
    assert found.num_blocks == COSTS.num_kv_tokens(H100) // 4
    assert paced_engine(EngineConfig(num_blocks=7), pacing).num_blocks == 7


def test_the_host_was_the_bottleneck_where_one_role_is_late() -> None:
    book = PacingBook()
    assert book.verdict() is None
    book.note("a", {Activity.ENGINE_STEP: ActivityTimes(number=10, modelled_s=100.0, late_s=1.0)})
    book.note("b", {Activity.TRAIN_STEP: ActivityTimes(number=2, modelled_s=50.0, late_s=1.0)})
    verdict = book.verdict()
    assert verdict is not None
    assert (verdict.overrun_share, verdict.host_was_bottleneck) == (pytest.approx(0.02), False)
    book.note("b", {Activity.TRAIN_STEP: ActivityTimes(number=3, modelled_s=50.0, late_s=2.0)})
    verdict = book.verdict()
    assert verdict is not None
    assert verdict.host_was_bottleneck
