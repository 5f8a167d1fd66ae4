"""Which decisions are written down."""

from __future__ import annotations

from controller_fakes import recorded, run_context
from hypothesis import given
from hypothesis import strategies as st

from rlserve.controller.decision_log import FIGURES_S, LONGEST_S, DecisionLog
from rlserve.manager.gang_table import GangTable
from rlserve.manager.measurement.figures import Measurements
from rlserve.manager.policies.base import Admission, Forecast, Move, Observation, Plan
from rlserve.manager.roles import Role
from rlserve.tracking.events import Decision


def observed(time_s: float, queue_length: int = 5) -> Observation:
    return Observation(
        time_s=time_s,
        queue_length=queue_length,
        num_buffered=0,
        num_in_flight=0,
        trainer_waiting=False,
        num_steps_left=None,
        admission=Admission(prompts_per_step=16, samples_per_prompt=8, max_live_groups=32, max_samples_per_replica=64),
        measured=Measurements(),
        gangs=(),
        legal_trainer_sizes=(1,),
        moving=False,
        last_move_end_s=None,
    )


def written(*decided: tuple[Observation, Plan]) -> list[Decision]:
    context = run_context()
    found = recorded(context.events, Decision)
    log = DecisionLog(context, GangTable())
    for observation, plan in decided:
        log.note(observation, plan)
    return found


def plan(reason: str, rate_now: float | None = None, *, moves: bool = False) -> Plan:
    forecast = None
    if rate_now is not None:
        forecast = Forecast(
            rate_now=rate_now, rate_after=3.0, gain=6.0, cost=1.0, horizon_s=120.0, target_num_rollout=2
        )
    return Plan(moves=(Move(gang_id="a", to=Role.ROLLOUT),) if moves else (), reason=reason, forecast=forecast)


def test_a_hold_on_the_same_grounds_is_written_once_a_minute() -> None:
    found = written(*((observed(float(second)), plan(f"cooldown for {200.5 - second} s")) for second in range(121)))
    assert [decision.time_s for decision in found] == [0.0, LONGEST_S, 2 * LONGEST_S]


def test_other_grounds_are_written_at_once_but_not_again_and_again() -> None:
    reasons = ["queue 12 is above 8", "queue 3 is below 4"] * 6
    found = written(*((observed(float(second)), plan(reason)) for second, reason in enumerate(reasons)))
    assert [decision.time_s for decision in found] == [0.0, 1.0, FIGURES_S, FIGURES_S + 1]


def test_figures_that_have_changed_are_written_after_ten_seconds() -> None:
    decided = [(observed(float(second)), plan("good", 2.0 if second < 3 else 2.3)) for second in range(30)]
    assert [(decision.time_s, decision.rate_now) for decision in written(*decided)] == [(0.0, 2.0), (FIGURES_S, 2.3)]
    little = [(observed(float(second)), plan("good", 2.0 if second < 3 else 2.1)) for second in range(30)]
    assert [decision.time_s for decision in written(*little)] == [0.0]


def test_every_move_is_written() -> None:
    found = written(*((observed(0.1 * number), plan("pays", 2.0, moves=True)) for number in range(3)))
    assert [(decision.action, decision.slot_id) for decision in found] == [("to_rollout", "a")] * 3


@given(st.lists(st.tuples(st.sampled_from(["a 1", "b 2", "c"]), st.integers(0, 50)), max_size=200))
def test_holds_never_come_thicker_than_their_grounds_allow(decided: list[tuple[str, int]]) -> None:
    found = written(*((observed(float(at), queue), plan(reason)) for at, (reason, queue) in enumerate(decided)))
    for begin_s in range(len(decided)):
        assert sum(begin_s <= decision.time_s < begin_s + FIGURES_S for decision in found) <= 3
