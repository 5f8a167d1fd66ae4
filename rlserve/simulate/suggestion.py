"""What a study suggests: a split, thresholds for the queue-length rule, and how large the trainer is."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from rlserve.config.thresholds import suggested_thresholds
from rlserve.manager.policies.ordering import order_for_rollout
from rlserve.simulate.scenario import Scenario
from rlserve.simulate.study import StudyResult

_COOLDOWN_MOVES = 15.0
"""A move's length, which a cooldown should be so many times of: fewer flap, more are late."""
_LEAST_COOLDOWN_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """Values to put into a configuration."""

    num_initial_rollout: int
    trainer: dict[str, int]
    """Gangs that train, by type."""
    queue_high: int
    queue_low: int
    cooldown_s: float
    best_policy: str
    gain: float
    """Of that policy over the best static split: 0.05 trains 5 % more."""

    @property
    def lines(self) -> tuple[str, ...]:
        """As keys of a configuration, with what they rest on."""
        trainer = ", ".join(f"{number} {name}" for name, number in self.trainer.items())
        return (
            f"pool.num_initial_rollout={self.num_initial_rollout}    the best static split; {trainer} train",
            f"manager.queue_high={self.queue_high} manager.queue_low={self.queue_low}    a quarter and a tenth of what "
            "the admission lets in",
            f"manager.cooldown_s={self.cooldown_s:.0f}    {_COOLDOWN_MOVES:.0f} times what a move takes here",
            f"manager={self.best_policy}    trains {self.gain:+.1%} against that split",
        )


def suggest(scenario: Scenario, result: StudyResult) -> Suggestion:
    """From the results; ``static`` is suggested where no policy does better."""
    training = order_for_rollout(scenario.gangs)[result.best_num_rollout :]
    others = result.policies[1:]
    best = max(others, key=lambda policy: policy.of_best_static.mean, default=result.policies[0])
    gain = best.of_best_static.mean - 1
    max_live = scenario.admission.max_live_groups
    queue_high, queue_low = suggested_thresholds(max_live)
    moves_s = [move.end_s - move.begin_s for policy in others for run in policy.runs for move in run.moves]
    move_s = sum(moves_s) / len(moves_s) if moves_s else _phases_s(scenario)
    return Suggestion(
        num_initial_rollout=result.best_num_rollout,
        trainer=dict(Counter(gang.type for gang in training)),
        queue_high=queue_high,
        queue_low=queue_low,
        cooldown_s=max(_LEAST_COOLDOWN_S, _COOLDOWN_MOVES * move_s),
        best_policy=best.name if gain > 0 else "static",
        gain=max(gain, 0.0),
    )


def _phases_s(scenario: Scenario) -> float:
    """A move without any wait for a step."""
    name, costs = scenario.gangs[0].type, scenario.costs
    names = [gang.type for gang in scenario.gangs[:2]]
    return costs.wake_s(name) + costs.weights_s(name) + costs.reshard_s(names, 1)
