"""Where the quick rule looks: around the split of the slow planner's linear programme, every few minutes."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

from rlserve.manager.policies.base import Observation
from rlserve.manager.policies.planner import TypeRates, fluid_optimum, load_solver
from rlserve.manager.policies.rate_memory import PlannedRange, RateState
from rlserve.manager.prediction.model import SplitModel
from rlserve.manager.prediction.splits import split_now

_NEW_LOAD = 0.05
"""Relative change of the kept share after which the plan is out of date."""
_SLACK_GANGS = 2
_SLACK = 0.1
"""Of all gangs: gangs cannot be divided, and the programme knows no batches that become smaller."""
_FEW_GANGS = 8
"""With so many, the quick rule looks at every split anyhow."""


def prepare_planning(num_gangs: int) -> None:
    """Load what planning will need, if it will, so that no decision waits for it."""
    if num_gangs > _FEW_GANGS:
        load_solver()


def plan_range(
    state: RateState, observation: Observation, model: SplitModel, *, interval_s: float, bounds: tuple[int, int]
) -> RateState:
    """The state with a range that is not out of date; with none where there are few gangs."""
    planned, present = state.planned, observation.staying
    if len(present) <= _FEW_GANGS:
        return replace(state, planned=None)
    if (
        planned is not None
        and observation.time_s - planned.time_s < interval_s
        and abs(model.work.kept_share / planned.kept_share - 1.0) < _NEW_LOAD
        and planned.num_gangs == len(present)
    ):
        return state
    now, types = split_now(observation), []
    for name, count in sorted(Counter(gang.type for gang in present).items()):
        rollout_rate, train_rate = model.gang_rates(name, now)
        types.append(TypeRates(type=name, num_gangs=count, rollout_rate=rollout_rate, train_rate=train_rate))
    num_rollout, slack = sum(fluid_optimum(types).num_rollout), max(_SLACK_GANGS, _SLACK * len(present))
    fewest, most = bounds
    return replace(
        state,
        planned=PlannedRange(
            time_s=observation.time_s,
            fewest=min(max(fewest, math.floor(num_rollout - slack)), most),
            most=max(min(most, math.ceil(num_rollout + slack)), fewest),
            kept_share=model.work.kept_share,
            num_gangs=len(present),
        ),
    )
