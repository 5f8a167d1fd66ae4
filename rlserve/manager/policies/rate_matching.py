"""Rate matching: gangs go where they raise the rate of training most, if that pays for the moves.

    measured rates ──► model of the run ──► flows of every split in reach ──┐
    finished groups in stock ───────────────────────────────────────────────┴─► value of every split now
                                                                                    │ one move towards the best
    pays:  value gained  >  safety × what the moves cost  +  min_gain for each      ▼

Between two splits, of which one makes more than training takes and one less, the stock of finished groups decides: see
``rlserve.manager.prediction.fluid``. So both sides work all the time although gangs cannot be divided, and a load that
changes is answered as soon as it shows, in the rates or in the stock. Once the run ends within the horizon, what counts
is when: see ``rlserve.manager.prediction.finish``. Moves towards one target follow each other at once. The next in the
other direction waits for the cooldown, and there are no more than so many in an hour.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rlserve.manager.config import RateMatchingConfig
from rlserve.manager.policies.base import Forecast, GangView, Move, Observation, Plan, Policy
from rlserve.manager.policies.bounds import rollout_bounds
from rlserve.manager.policies.placement import needed_move
from rlserve.manager.policies.planned_range import plan_range
from rlserve.manager.policies.rate_memory import PlannedRange, RateState, note_observation
from rlserve.manager.prediction.finish import Change, WorkLeft, seconds_left
from rlserve.manager.prediction.fluid import Array, Later, at_stock, values
from rlserve.manager.prediction.model import SplitModel, split_model
from rlserve.manager.prediction.splits import Split, directions, split_now
from rlserve.manager.prediction.throughput import Rates
from rlserve.manager.roles import Role
from rlserve.roofline.accelerators import is_cpu

_PRIOR_DURATION_S = 10.0
_PRIOR_PAUSE_S = 2.0
"""Of a move, before there was one."""
_NUM_STAGES = 8
"""Of the horizon, after each of which the best control may move gangs again."""
_LOOKS_PER_STEP = 16
"""Of training: nothing that counts is quicker."""
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
    gain: float
    """Prompt groups over the horizon, against waiting with it."""
    cost: float
    """Prompt groups."""
    price: float
    """What the gain has to exceed."""


@dataclass(frozen=True, kw_only=True)
class _Situation:
    """What a decision rests on, worked out once."""

    observation: Observation
    model: SplitModel
    now: Split
    rates: Rates
    """Of that split."""
    stock: float
    planned: PlannedRange | None
    bounds: tuple[int, int]
    """Of the number of gangs in rollout."""
    horizon_s: float
    """How long rates are trusted, and no longer than the run still goes on."""
    left: WorkLeft | None
    """What the run has still to do, if it ends within that."""


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
        fewest, most = rollout_bounds(self._config, observation.staying)
        needed = needed_move(observation, fewest, most)
        if needed is not None:
            move, reason = needed
            return Plan(moves=(move,), reason=reason), state
        if observation.moving:
            return Plan(reason="a move is under way"), state
        if state.plan is not None and observation.time_s < state.look_again_s:
            return state.plan, state
        now = split_now(observation)
        if not now.rollout or not now.train:
            return Plan(reason="one of the two roles is not there yet"), state
        model = split_model(observation, now, state.running_share)
        if isinstance(model, str):
            return Plan(reason=model), state
        state = plan_range(state, observation, model, interval_s=self._config.planner_interval_s, bounds=(fewest, most))
        rates = model.rates(now)
        left = model.work_left(observation, rates)
        left_s = math.inf if left is None else (left.num_groups + left.prompts_per_step) / rates.rate
        situation = _Situation(
            observation=observation,
            model=model,
            now=now,
            rates=rates,
            stock=model.stock(observation, rates),
            planned=state.planned,
            bounds=(fewest, most),
            horizon_s=min(self._config.horizon_s, left_s),
            left=left if left_s < self._config.horizon_s else None,
        )
        plan = self._plan(situation, state)
        look_again_s = observation.time_s + rates.train_step_s / _LOOKS_PER_STEP
        return plan, replace(state, plan=None if plan.moves else plan, look_again_s=look_again_s)

    def _plan(self, situation: _Situation, state: RateState) -> Plan:
        observation, rates, horizon_s = situation.observation, situation.rates, situation.horizon_s
        numbers, options = _numbers(situation), self._options(situation)
        if not options:
            num_rollout, unit = situation.now.num_rollout, observation.unit
            return Plan(reason=f"no other split is legal: {num_rollout} {unit}s roll out", numbers=numbers)
        best = max(options, key=lambda each: (each.gain - each.price, -each.num_moves))
        forecast = Forecast(
            rate_now=rates.rate,
            rate_after=rates.rate + best.gain / horizon_s,
            gain=best.gain,
            cost=best.cost,
            horizon_s=horizon_s,
            target_num_rollout=best.split.num_rollout,
        )
        obstacle = self._obstacle(situation, state, best)
        if obstacle is not None:
            return Plan(reason=obstacle, forecast=forecast, numbers=numbers)
        moves = (Move(gang_id=best.gang.id, to=best.to),)
        return Plan(moves=moves, reason=_reason(best, forecast, situation), forecast=forecast, numbers=numbers)

    def _options(self, situation: _Situation) -> list[_Option]:
        observation, now, planned = situation.observation, situation.now, situation.planned
        rate_now, horizon_s = situation.rates.rate, situation.horizon_s
        reached = [
            (direction.to, direction.gangs[0], num_moves, split)
            for direction in directions(observation, *situation.bounds)
            for num_moves, split in direction.splits
            if planned is None or _is_within(split.num_rollout, now.num_rollout, planned)
        ]
        if not reached:
            return []
        num_staying = len(observation.staying)
        to_rollout, to_train = (
            rate_now * self._move_cost_s(observation, role, num_staying) for role in (Role.ROLLOUT, Role.TRAIN)
        )
        places = np.array([0, *(num if to is Role.ROLLOUT else -num for to, _, num, _ in reached)])
        moves = places[None, :] - places[:, None]  # [from, to], those to training negative
        costs = np.where(moves > 0, to_rollout, to_train) * np.abs(moves)
        prices = self._config.safety * costs + self._config.min_gain * rate_now * horizon_s * np.abs(moves)
        splits = [now, *(split for _, _, _, split in reached)]
        value_now, *others = _values(situation, splits, prices).tolist()
        return [
            _Option(
                to=to,
                gang=gang,
                num_moves=num_moves,
                split=split,
                gain=others[index] - value_now,
                cost=float(costs[0, index + 1]),
                price=float(prices[0, index + 1]),
            )
            for index, (to, gang, num_moves, split) in enumerate(reached)
        ]

    def _move_cost_s(self, observation: Observation, to: Role, num_staying: int) -> float:
        """Of one move, in seconds of the whole run: training stands still, and a gang does nothing."""
        costs = observation.measured.move_costs
        measured = costs.get(to) or next(iter(costs.values()), None)
        duration_s = _PRIOR_DURATION_S if measured is None else measured.duration_s
        pause_s = _PRIOR_PAUSE_S if measured is None else measured.trainer_pause_s
        return pause_s + duration_s / num_staying

    def _obstacle(self, situation: _Situation, state: RateState, best: _Option) -> str | None:
        """Why the best move is not made."""
        observation, horizon_s = situation.observation, situation.horizon_s
        unit = observation.unit
        what = f"{best.split.num_rollout} {unit}s in rollout"
        if best.gain <= 0.0:
            return f"the split is good: to go to {what} now would gain nothing"
        if best.gain <= best.price:
            return (
                f"the split is good: {what} would gain {best.gain:.1f} prompt groups in {horizon_s:.0f} s, and have to "
                f"gain {best.price:.1f} to pay for the move"
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
        rest_s = state.moves[-1][0] + config.cooldown_s - observation.time_s
        return f"the last move went the other way: cooldown for another {rest_s:.0f} s" if rest_s > 0 else None


def _values(situation: _Situation, splits: Sequence[Split], prices: Array) -> Array:
    """Groups trained if each of the splits is made now, [M], up to a constant: within the horizon, or until the run is
    done, in groups at the rate that there is now."""
    if situation.left is not None:
        return -situation.rates.rate * _seconds_left(situation, situation.left, splits, prices)
    model, horizon_s, later = situation.model, situation.horizon_s, None
    flows, stage_s = model.flows(splits), horizon_s / _NUM_STAGES
    alternation = situation.observation.measured.kept_alternation
    if alternation is not None:
        mean = model.with_kept_share(alternation.mean).flows(splits)
        value = values(mean, costs=prices, stage_s=stage_s, horizon_s=horizon_s)
        later = Later(value=value, share=1.0 - math.exp(-stage_s / alternation.regime_s))
    value = values(flows, costs=prices, stage_s=stage_s, horizon_s=horizon_s, later=later)
    return at_stock(flows, value, situation.stock)


def _seconds_left(situation: _Situation, left: WorkLeft, splits: Sequence[Split], prices: Array) -> Array:
    """Until the run is done if each of the splits is made now, [M]."""
    if not left.num_groups:
        return np.zeros(len(splits))  # the last step is under way, or about to begin
    model, costs_s, change = situation.model, prices / situation.rates.rate, None
    flows, alternation = model.flows(splits), situation.observation.measured.kept_alternation
    if alternation is not None:
        mean = model.with_kept_share(alternation.mean).flows(splits)
        left_then = replace(left, kept_share=alternation.mean)
        change = Change(seconds=seconds_left(mean, left_then, costs_s=costs_s), mean_s=alternation.regime_s)
    return at_stock(flows, seconds_left(flows, left, costs_s=costs_s, change=change)[-1], situation.stock)


def _is_within(num_rollout: int, num_now: int, planned: PlannedRange) -> bool:
    """A split in the planned range, or one nearer to it than that there is."""
    nearest = min(max(num_now, planned.fewest), planned.most)
    return planned.fewest <= num_rollout <= planned.most or abs(num_rollout - nearest) < abs(num_now - nearest)


def _reason(best: _Option, forecast: Forecast, situation: _Situation) -> str:
    unit = situation.observation.unit
    if best.to is Role.TRAIN:
        why, what = f"{situation.stock:.0f} prompt groups are in stock for training", f"one rollout {unit} fewer"
    else:
        why = (
            "training waits for rollout" if situation.rates.trainer_waits else "what is in stock for training runs out"
        )
        what = f"one more rollout {unit}"
    towards = f", the first of {best.num_moves} moves" if best.num_moves > 1 else ""
    share = forecast.rate_after / forecast.rate_now - 1.0 if forecast.rate_now else 0.0
    return (
        f"{why}: {what}{towards}, brings {forecast.rate_after:.3g} prompt groups a second in place of "
        f"{forecast.rate_now:.3g} ({100 * share:.1f} % more)"
    )


def _numbers(situation: _Situation) -> Mapping[str, float]:
    observation, model, now, rates = situation.observation, situation.model, situation.now, situation.rates
    work, measured = model.work, observation.measured
    numbers = {
        "num_train": float(sum(now.train.values())),
        "num_rollout": float(now.num_rollout),
        "kept_share": work.kept_share,
        "kept_share_error": model.kept_error,
        "tokens_per_group": work.tokens_per_group,
        "running_share": work.running_share,
        "trainer_rate": rates.trainer,
        "stock": situation.stock,
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
