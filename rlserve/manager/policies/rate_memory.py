"""What rate matching remembers between two decisions: moves, the planned range, how full engines are."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from rlserve.manager.policies.base import Observation, Plan
from rlserve.manager.prediction.splits import split_now
from rlserve.manager.roles import Role

_HOUR_S = 3600.0
_RUNNING_S = 120.0
"""Time constant of the share of samples that run."""


@dataclass(frozen=True, kw_only=True)
class PlannedRange:
    """What the slow planner has said."""

    time_s: float
    fewest: int
    most: int
    """Gangs in rollout."""
    kept_share: float
    num_gangs: int


@dataclass(frozen=True, kw_only=True)
class RateState:
    """Nothing in it is known before the first decision."""

    time_s: float | None = None
    running: float = 0.0
    """Samples that engines compute, and as many as groups under way have: sums that fade."""
    started: float = 0.0
    num_rollout: int | None = None
    """When no move was under way."""
    moves: tuple[tuple[float, Role], ...] = ()
    """Of the last hour: their ends and directions."""
    planned: PlannedRange | None = None
    plan: Plan | None = None
    """The last one without a move, which holds until ``look_again_s``."""
    look_again_s: float = 0.0

    @property
    def running_share(self) -> float | None:
        """Of the samples of groups under way, those that an engine computes."""
        return min(1.0, max(0.05, self.running / self.started)) if self.started else None


def note_observation(state: RateState, observation: Observation) -> RateState:
    """The state after seeing an observation; seeing it again changes nothing."""
    if state.time_s is not None and observation.time_s <= state.time_s:
        return state
    elapsed_s = 1.0 if state.time_s is None else observation.time_s - state.time_s
    fade = math.exp(-elapsed_s / _RUNNING_S)
    running, started = _samples(observation)
    state = replace(
        state,
        time_s=observation.time_s,
        running=state.running * fade + running * elapsed_s,
        started=state.started * fade + started * elapsed_s,
        moves=tuple(move for move in state.moves if move[0] > observation.time_s - _HOUR_S),
    )
    return state if observation.moving else _note_move(state, observation)


def _note_move(state: RateState, observation: Observation) -> RateState:
    num_rollout, end_s = split_now(observation).num_rollout, observation.last_move_end_s
    last_s = state.moves[-1][0] if state.moves else None
    if end_s is not None and end_s != last_s and state.num_rollout not in (None, num_rollout):
        num_more = num_rollout - (state.num_rollout or 0)
        to = Role.ROLLOUT if num_more > 0 else Role.TRAIN
        state = replace(state, moves=(*state.moves, *[(end_s, to)] * abs(num_more)))
    return replace(state, num_rollout=num_rollout)


def _samples(observation: Observation) -> tuple[float, float]:
    """Samples that engines have, and that groups have which are with an engine."""
    admission, waiting = observation.admission, observation.queue_length or 0
    in_training = 0 if observation.trainer_waiting else admission.prompts_per_step
    most = admission.max_live_groups - observation.num_buffered - in_training
    num_started = max(0, min(observation.num_in_flight, most) - waiting)
    running = sum(replica.num_running + replica.num_waiting for replica in observation.measured.replicas)
    return float(running), float(num_started * admission.samples_per_prompt)
