"""Target tracking: as many replicas as bring every metric to its target.

::

    samples ──► demand by metric: replicas that would have just the target, mean over the scale-up window
                   │ any: the most, all: the fewest
                   ▼
    demand > wanted × (1 + tolerance)               ──► up: ceil(demand), not within the cooldown
    ceil(demand × (1 + tolerance)) < wanted,
    and so at every moment of the scale-down window ──► down to the most that was asked for in it

What is left after a fall has room for the tolerance, so a load that stays never moves the number back. The demand
counts replicas that are ready; those that still start are in the number that is wanted, so a load is never answered
twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from rlserve.serving.scaling.base import Cause, LoadSample, ScalingObservation, ScalingPlan, ScalingPolicy
from rlserve.serving.scaling.config import ScalingConfig
from rlserve.serving.scaling.schedule import bounds_at

METRICS = (
    Cause.LOAD,
    Cause.NUM_WAITING,
    Cause.KV_CACHE_USAGE,
    Cause.TIME_TO_FIRST_TOKEN,
    Cause.INTER_TOKEN_LATENCY,
    Cause.BUSY_SHARE,
)
"""Their values are the names of the targets, too."""
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Asked:
    """Replicas that the load asked for."""

    time_s: float
    num_replicas: int


@dataclass(frozen=True, kw_only=True)
class TargetState:
    """What a decision needs of those before it."""

    began_s: float | None = None
    """When the first decision was made."""
    asked: tuple[Asked, ...] = ()
    """Over the scale-down window."""
    changed_s: float | None = None
    """When the number last changed."""


class TargetTracking(ScalingPolicy[TargetState]):
    """As many replicas as bring every metric to its target, within bounds, windows and cooldowns."""

    def __init__(self, config: ScalingConfig) -> None:
        self._config = config

    @property
    def look_back_s(self) -> float:
        """The scale-up window; the other one is in the state."""
        return self._config.scale_up_window_s

    def initial_state(self) -> TargetState:
        """Nothing was asked for yet."""
        return TargetState()

    def decide(self, observation: ScalingObservation, state: TargetState) -> tuple[ScalingPlan, TargetState]:
        """The rule above, within the bounds of the hour, which count at once."""
        config, now_s, wanted = self._config, observation.time_s, observation.num_wanted
        floor, ceiling = bounds_at(config, observation.unix_s, observation.most)
        demands = self._demands(observation)
        numbers = {
            **{f"demand/{cause}": demand for cause, demand in demands.items()},
            "num_wanted": wanted,
            "floor": floor,
            "ceiling": ceiling,
        }
        cause, demand = self._combined(demands)
        fewer = wanted if demand is None else math.ceil(demand * (1 + config.tolerance) - _ROUNDING)
        began_s = now_s if state.began_s is None else state.began_s
        kept = (asked for asked in state.asked if asked.time_s > now_s - config.scale_down_window_s)
        state = replace(state, began_s=began_s, asked=(*kept, Asked(now_s, fewer)))
        bounded = min(max(wanted, floor), ceiling)
        if bounded != wanted:
            bound = Cause.FLOOR if bounded > wanted else Cause.CEILING
            plan = ScalingPlan(
                num_replicas=bounded,
                cause=bound,
                reason=f"{wanted} wanted, and the {bound} is {bounded}",
                numbers=numbers,
            )
        elif demand is None:
            plan = ScalingPlan(num_replicas=wanted, cause=cause, reason="no metric is known", numbers=numbers)
        else:
            plan = self._by_load(observation, state, (floor, ceiling), cause, demand)
            plan = replace(plan, numbers=numbers)
        if plan.num_replicas != wanted:
            state = replace(state, changed_s=now_s)
        return plan, state

    def _demands(self, observation: ScalingObservation) -> dict[Cause, float]:
        """Replicas that would have just the target, by metric."""
        begin_s = observation.time_s - self._config.scale_up_window_s
        samples = [sample for sample in observation.samples if sample.time_s >= begin_s and sample.num_ready > 0]
        found: dict[Cause, float] = {}
        for cause in METRICS:
            target: float | None = getattr(self._config.targets, cause.value)
            if target is None:
                continue
            demands = [
                value * sample.num_ready / target for sample in samples if (value := _value(sample, cause)) is not None
            ]
            if demands:
                found[cause] = sum(demands) / len(demands)
        return found

    def _combined(self, demands: dict[Cause, float]) -> tuple[Cause, float | None]:
        """Which metric decides, and what it asks for."""
        if not demands:
            return Cause.UNKNOWN, None
        choose = max if self._config.combine == "any" else min
        cause = choose(demands, key=demands.__getitem__)
        return cause, demands[cause]

    def _by_load(
        self, observation: ScalingObservation, state: TargetState, bounds: tuple[int, int], cause: Cause, demand: float
    ) -> ScalingPlan:
        """``bounds``: fewest and most."""
        config, now_s, wanted, (floor, ceiling) = self._config, observation.time_s, observation.num_wanted, bounds
        rested_s = math.inf if state.changed_s is None else now_s - state.changed_s
        if demand > wanted * (1 + config.tolerance) + _ROUNDING:
            most = max(wanted + 1, math.floor(wanted * config.max_growth))
            number = min(math.ceil(demand - _ROUNDING), most, ceiling)
            reason = f"{cause} asks for {demand:.2f}"
            if number == wanted:
                return ScalingPlan(num_replicas=wanted, cause=Cause.CEILING, reason=f"{reason}, at the ceiling")
            if rested_s < config.scale_up_cooldown_s:
                reason = f"{reason}; cooldown for another {config.scale_up_cooldown_s - rested_s:.1f} s"
                return ScalingPlan(num_replicas=wanted, cause=Cause.COOLDOWN, reason=reason)
            return ScalingPlan(num_replicas=number, cause=cause, reason=reason)
        if state.asked[-1].num_replicas >= wanted:
            return ScalingPlan(num_replicas=wanted, cause=Cause.STEADY, reason=f"{cause} asks for {demand:.2f}")
        return self._fewer(observation, state, floor, cause, f"{cause} asks for {demand:.2f}")

    def _fewer(
        self, observation: ScalingObservation, state: TargetState, floor: int, cause: Cause, reason: str
    ) -> ScalingPlan:
        config, now_s, wanted = self._config, observation.time_s, observation.num_wanted
        assert state.began_s is not None, "decisions begin with one"
        rested_s = math.inf if state.changed_s is None else now_s - state.changed_s
        number = max(max(asked.num_replicas for asked in state.asked), floor)
        if number >= wanted:
            held = Cause.FLOOR if floor == wanted else Cause.WINDOW
            return ScalingPlan(num_replicas=wanted, cause=held, reason=f"{reason}; held by the {held}")
        if now_s - state.began_s < config.scale_down_window_s:
            return ScalingPlan(num_replicas=wanted, cause=Cause.WINDOW, reason=f"{reason}; not for long enough yet")
        if rested_s < config.scale_down_cooldown_s:
            reason = f"{reason}; cooldown for another {config.scale_down_cooldown_s - rested_s:.1f} s"
            return ScalingPlan(num_replicas=wanted, cause=Cause.COOLDOWN, reason=reason)
        reason = f"{reason}, {number} at most for {config.scale_down_window_s:g} s"
        return ScalingPlan(num_replicas=number, cause=cause, reason=reason)


def _value(sample: LoadSample, cause: Cause) -> float | None:
    """A metric of one replica in the mean; ``sample`` has ready ones."""
    match cause:
        case Cause.LOAD:
            return sample.num_live_samples / sample.num_places
        case Cause.NUM_WAITING:
            return None if sample.num_waiting is None else sample.num_waiting / sample.num_ready
        case _:
            value: float | None = getattr(sample, cause.value)
            return value
