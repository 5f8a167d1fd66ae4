"""What rate matching remembers between two decisions: moves, what splits really came to, how full engines are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise

from rlserve.manager.policies.base import Observation
from rlserve.manager.prediction.model import SplitModel
from rlserve.manager.prediction.splits import Split, split_now
from rlserve.manager.roles import Role

_HOUR_S = 3600.0
_RUNNING_S = 120.0
"""Time constant of the share of samples that run."""
_MIN_STEPS = 3
"""On a split before what it came to counts."""
_SAME_LOAD = 0.15
"""Kept shares that differ by less, relative, are one load: what was learned of a split under it holds."""
_LEAST, _MOST = 0.5, 1.3
"""Of measured over predicted rates: beyond, something else was measured than the split."""
_SHORT = 0.9
"""A rate below this share of the predicted one falls short."""
_WAITS = 0.05
"""Share of its time that the trainer waits where rollout sets the pace."""
_FULL = 0.6
"""A replica with more of its largest batch has enough to do: if it falls short, not for the slowest samples."""


@dataclass(frozen=True, kw_only=True)
class Realised:
    """What a split came to."""

    split: Split
    rate: float
    """Prompt groups a second."""
    kept_share: float
    """The load at that time."""


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
    realised: Mapping[int, Realised] = field(default_factory=dict)
    """By the number of gangs in rollout."""
    tail_tokens: float = 0.0
    """See ``rlserve.manager.prediction.throughput``."""
    rollout_factor: float = 1.0
    planned: PlannedRange | None = None

    @property
    def num_turns(self) -> int:
        """Moves of the last hour that went the other way than those before."""
        return sum(later[1] is not earlier[1] for earlier, later in pairwise(self.moves))

    @property
    def running_share(self) -> float | None:
        """Of the samples of groups under way, those that an engine computes."""
        return min(1.0, max(0.05, self.running / self.started)) if self.started else None

    def corrections(self, model: SplitModel, now: Split) -> Callable[[Split], float]:
        """Measured over predicted rate of a split: its own where this load has seen it, else that of the split there
        is."""
        ratios = {
            known.split: min(
                max(known.rate / model.uncorrected(known.split, kept_share=known.kept_share).rate, _LEAST), _MOST
            )
            for known in self.realised.values()
            if abs(known.kept_share / model.work.kept_share - 1.0) < _SAME_LOAD
        }
        of_now = ratios.get(now, 1.0)
        return lambda split: ratios.get(split, of_now)


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


def note_progress(state: RateState, observation: Observation, model: SplitModel) -> RateState:
    """Remember what the present split comes to, once it has made steps under the load that there is now."""
    progress, now = observation.measured.progress, split_now(observation)
    if progress is None or progress.num_steps < _MIN_STEPS or observation.moving:
        return state
    num_steps = min(progress.num_steps, 8)
    num_scored = num_steps * model.work.admission.prompts_per_step / model.work.kept_share
    if observation.measured.num_kept_observed < min(num_scored, 256):
        return state  # the load has changed in these steps
    known = Realised(split=now, rate=progress.groups_per_s, kept_share=model.work.kept_share)
    state = replace(state, realised={**state.realised, now.num_rollout: known})
    if progress.wait_share < _WAITS:
        return state  # rollout does not set the pace, so what it can do was not seen
    without = replace(model, work=replace(model.work, tail_tokens=0.0, rollout_factor=1.0)).uncorrected(now)
    ratio = progress.groups_per_s / without.rate
    if ratio < _SHORT and without.batch < _FULL * model.work.max_batch:
        life_s = model.work.admission.max_live_groups / progress.groups_per_s
        tail_tokens = max(0.0, life_s - without.train_step_s) / without.decode_step_s
        return replace(state, tail_tokens=tail_tokens, rollout_factor=1.0)
    return replace(state, tail_tokens=0.0, rollout_factor=_rollout_factor(progress.groups_per_s, model, now))


def _rollout_factor(rate: float, model: SplitModel, now: Split) -> float:
    """The factor with which rollout of this split is predicted at ``rate``."""
    low, high = _LEAST, _MOST
    for _ in range(6):
        middle = 0.5 * (low + high)
        work = replace(model.work, tail_tokens=0.0, rollout_factor=middle)
        low, high = (middle, high) if replace(model, work=work).uncorrected(now).rate < rate else (low, middle)
    return 0.5 * (low + high)


def _samples(observation: Observation) -> tuple[float, float]:
    """Samples that engines have, and that groups have which are with an engine."""
    admission, waiting = observation.admission, observation.queue_length or 0
    in_training = 0 if observation.trainer_waiting else admission.prompts_per_step
    most = admission.max_live_groups - observation.num_buffered - in_training
    num_started = max(0, min(observation.num_in_flight, most) - waiting)
    running = sum(replica.num_running + replica.num_waiting for replica in observation.measured.replicas)
    return float(running), float(num_started * admission.samples_per_prompt)
