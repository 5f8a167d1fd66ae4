"""Rate matching: gangs go where they raise the rate of training most, if that pays for the moves.

    measured rates ──► model of the run ──► rate of every split in reach ──► the best net of its moves' cost
                                                                                    │ one move towards it
    pays:  gain over the horizon  >  safety × cost of the moves                     ▼
           also if the kept share is a standard error less favourable than it was measured, or two, to turn back

Moves towards one target follow each other at once. The next in the other direction waits for the cooldown, and there
are no more than so many in an hour, so noise moves nothing back and forth. What a split really came to is remembered
with its load: one that did not keep what was predicted is left again, and not tried again until the load has changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from rlserve.manager.config import RateMatchingConfig
from rlserve.manager.policies.base import Forecast, GangView, Move, Observation, Plan, Policy
from rlserve.manager.policies.bounds import rollout_bounds
from rlserve.manager.policies.placement import needed_move, staying
from rlserve.manager.policies.planned_range import plan_range
from rlserve.manager.policies.rate_memory import PlannedRange, RateState, note_observation, note_progress
from rlserve.manager.prediction.fluid import at_stock, values
from rlserve.manager.prediction.model import SplitModel, split_model
from rlserve.manager.prediction.splits import Split, directions, split_now
from rlserve.manager.roles import Role
from rlserve.roofline.accelerators import is_cpu

_PRIOR_DURATION_S = 10.0
_PRIOR_PAUSE_S = 2.0
"""Of a move, before there was one."""
_COOLDOWN_MOVES = 10.0
"""Least time before a move in the other direction, in durations of a move."""
_STEPS_BEFORE_TURNING = 2
"""Of training after a move, before one in the other direction."""
_FREE_TURNS = 3
"""In an hour; each more doubles the cooldown, since the rates do not show what the splits differ in."""
_NUM_STAGES = 8
_SATURATED = 0.95
"""Share of a host's processor time from which on one more process adds nothing."""


@dataclass(frozen=True, kw_only=True)
class _Option:
    """A split that could be made for."""

    to: Role
    gang: GangView
    """The first to move."""
    num_moves: int
    split: Split
    rate_now: float
    rate_after: float
    gain: float
    """Prompt groups over the horizon, with the kept share less favourable."""
    cost: float
    """Prompt groups."""
    advantage: float
    """Gain over safety times cost."""

    @property
    def relative(self) -> float:
        """Gain of the rate."""
        return self.rate_after / self.rate_now - 1.0 if self.rate_now else 0.0


class RateMatchingPolicy(Policy[RateState]):
    """Moves one gang at a time towards the split with the highest predicted rate."""

    def __init__(self, config: RateMatchingConfig) -> None:
        self._config = config

    def initial_state(self) -> RateState:
        """Nothing is known."""
        return RateState()

    def decide(self, observation: Observation, state: RateState) -> tuple[Plan, RateState]:
        """At most one move."""
        state = note_observation(state, observation)
        fewest, most = rollout_bounds(self._config, len(staying(observation)))
        needed = needed_move(observation, fewest, most)
        if needed is not None:
            move, reason = needed
            return Plan(moves=(move,), reason=reason), state
        if observation.moving:
            return Plan(reason="a move is under way"), state
        now = split_now(observation)
        if not now.rollout or not now.train:
            return Plan(reason="one of the two roles is not there yet"), state
        model = split_model(observation, state.running_share)
        if isinstance(model, str):
            return Plan(reason=model), state
        state = note_progress(state, observation, model)
        state = plan_range(state, observation, model, interval_s=self._config.planner_interval_s, bounds=(fewest, most))
        return self._plan(observation, state, model, bounds=(fewest, most)), state

    def _plan(self, observation: Observation, state: RateState, model: SplitModel, bounds: tuple[int, int]) -> Plan:
        now, unit = split_now(observation), observation.unit
        stock = model.stock(observation)
        numbers = {**_numbers(observation, model, now), "stock": stock}
        options = self._options(observation, state, model, stock, bounds)
        if not options:
            return Plan(reason=f"no other split is legal: {now.num_rollout} {unit}s roll out", numbers=numbers)
        best = max(options, key=lambda each: (each.advantage, -each.num_moves))
        forecast = Forecast(
            rate_now=best.rate_now,
            rate_after=best.rate_after,
            gain=best.gain,
            cost=best.cost,
            horizon_s=self._config.horizon_s,
            target_num_rollout=best.split.num_rollout,
        )
        obstacle = self._obstacle(observation, state, best)
        if obstacle is not None:
            return Plan(reason=obstacle, forecast=forecast, numbers=numbers)
        moves = (Move(gang_id=best.gang.id, to=best.to),)
        return Plan(moves=moves, reason=_reason(best, now, model, unit), forecast=forecast, numbers=numbers)

    def _options(
        self, observation: Observation, state: RateState, model: SplitModel, stock: float, bounds: tuple[int, int]
    ) -> list[_Option]:
        now, planned, horizon_s = split_now(observation), state.planned, self._config.horizon_s
        reached = [
            (direction.to, direction.gangs[0], num_moves, split)
            for direction in directions(observation, *bounds)
            for num_moves, split in direction.splits
            if planned is None or _is_within(split.num_rollout, now.num_rollout, planned)
        ]
        if not reached:
            return []
        rate_now = model.rates(now).rate
        cost = {role: rate_now * self._move_cost_s(observation, role) for role in Role}
        places = np.array([0] + [num if to is Role.ROLLOUT else -num for to, _, num, _ in reached])
        distance = places[None, :] - places[:, None]
        lost = np.where(distance > 0, cost[Role.ROLLOUT], cost[Role.TRAIN]) * np.abs(distance)
        least = self._config.min_gain * rate_now * horizon_s
        costs = self._config.safety * lost + least * np.abs(distance)
        flows = model.flows([now, *(split for _, _, _, split in reached)])
        stage_s = max(horizon_s / _NUM_STAGES, 1e-3)
        value = at_stock(flows, values(flows, costs=costs, stage_s=stage_s, horizon_s=horizon_s), stock)
        return [
            _Option(
                to=to,
                gang=gang,
                num_moves=num_moves,
                split=split,
                rate_now=rate_now,
                rate_after=rate_now + (value[index] - value[0]) / horizon_s,
                gain=value[index] - value[0],
                cost=lost[0, index],
                advantage=value[index] - value[0] - costs[0, index],
            )
            for index, (to, gang, num_moves, split) in enumerate(reached, start=1)
        ]

    def _move_cost_s(self, observation: Observation, to: Role) -> float:
        """Of one move, in seconds of the whole run: training stands still, and a gang does nothing."""
        costs = observation.measured.move_costs
        measured = costs.get(to) or next(iter(costs.values()), None)
        duration_s = _PRIOR_DURATION_S if measured is None else measured.duration_s
        pause_s = _PRIOR_PAUSE_S if measured is None else measured.trainer_pause_s
        return pause_s + duration_s / len(staying(observation))

    def _obstacle(self, observation: Observation, state: RateState, best: _Option) -> str | None:
        """Why the best move is not made."""
        config, unit = self._config, observation.unit
        what = f"{best.split.num_rollout} {unit}s in rollout"
        if best.gain <= 0.0 or best.gain < config.min_gain * best.rate_now * config.horizon_s * best.num_moves:
            return (
                f"the split is good: {what} would gain {_percent(best.relative)}, less than {100 * config.min_gain:g} %"
            )
        if best.advantage <= 0.0:
            return (
                f"{what} would gain {_percent(best.relative)}: {best.gain:.1f} prompt groups in "
                f"{config.horizon_s:.0f} s do not pay {config.safety:g} times for the {best.cost:.1f} that moving costs"
            )
        busy = observation.measured.host_busy_share
        if busy is not None and busy >= _SATURATED and is_cpu(best.gang.type):
            return f"the processors that the {unit}s share are {100 * busy:.0f} % busy: one more process adds nothing"
        return self._too_soon(observation, state, best.to)

    def _too_soon(self, observation: Observation, state: RateState, to: Role) -> str | None:
        config = self._config
        if len(state.moves) >= config.max_moves_per_hour:
            return f"there were {len(state.moves)} moves in the last hour, and no more are allowed"
        if not state.moves or state.moves[-1][1] is to:
            return None
        costs, progress = observation.measured.move_costs, observation.measured.progress
        duration_s = max((cost.duration_s for cost in costs.values()), default=0.0)
        cooldown_s = config.cooldown_s
        rest_s = state.moves[-1][0] + cooldown_s - observation.time_s
        return f"the last move went the other way: cooldown for another {rest_s:.0f} s" if rest_s > 0 else None


def _errors(state: RateState, to: Role) -> float:
    """Standard errors that the kept share may be off: two for a move that takes the last one back."""
    return 2.0 if state.moves and state.moves[-1][1] is not to else 1.0


def _is_within(num_rollout: int, num_now: int, planned: PlannedRange) -> bool:
    """A split in the planned range, or one nearer to it than that there is."""
    nearest = min(max(num_now, planned.fewest), planned.most)
    return planned.fewest <= num_rollout <= planned.most or abs(num_rollout - nearest) < abs(num_now - nearest)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _reason(best: _Option, now: Split, model: SplitModel, unit: str) -> str:
    before = model.rates(now)
    side = "training waits for rollout" if before.trainer_waits else "rollout is ahead of training"
    more = f"one more rollout {unit}" if best.to is Role.ROLLOUT else f"one rollout {unit} fewer"
    towards = f", the first of {best.num_moves} moves" if best.num_moves > 1 else ""
    return (
        f"{side}: {more}{towards}, brings {best.rate_after:.3g} prompt groups a second in place of {best.rate_now:.3g} "
        f"({_percent(best.relative)} more)"
    )


def _numbers(observation: Observation, model: SplitModel, now: Split) -> Mapping[str, float]:
    work, rates, measured = model.work, model.rates(now), observation.measured
    numbers = {
        "num_train": float(sum(now.train.values())),
        "num_rollout": float(now.num_rollout),
        "kept_share": work.kept_share,
        "kept_share_error": model.kept_error,
        "tokens_per_group": work.tokens_per_group,
        "running_share": work.running_share,
        "trainer_rate": rates.trainer,
        "buffered_s": observation.num_buffered / rates.trainer,
    }
    generated = sum(replica.tokens_per_s or 0.0 for replica in measured.replicas)
    if observation.queue_length is not None and generated:
        numbers["queue_s"] = observation.queue_length * work.tokens_per_group / generated
    if measured.progress is not None:
        numbers["measured_rate"] = measured.progress.groups_per_s
        numbers["wait_share"] = measured.progress.wait_share
    if measured.host_busy_share is not None:
        numbers["host_busy_share"] = measured.host_busy_share
    return numbers
