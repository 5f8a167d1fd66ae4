"""The queue-length rule: a long queue of prompts asks for rollout gangs, a short one gives them back. A client's
request that waits counts as the share of a prompt group that clients may have of replicas (rollout.server.max_share).

    queue > queue_high  →  one more rollout gang, up to max_rollout_share of the gangs that live and stay
    queue < queue_low   →  one fewer, down to min_rollout_share, and never below one

One move at a time, and none within ``cooldown_s`` after the end of the last: without it the rule flaps, and moves
cost more than they bring. Training always keeps at least one gang, and a number that the trainer can run on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rlserve.manager.config import QueueThresholdConfig
from rlserve.manager.policies.base import GangView, Move, Observation, Plan, Policy
from rlserve.manager.policies.bounds import rollout_bounds
from rlserve.manager.policies.ordering import order_for_rollout, order_for_training
from rlserve.manager.policies.placement import needed_move
from rlserve.manager.roles import Role


@dataclass(frozen=True, kw_only=True)
class _Pool:
    """The gangs that live and stay, and the limits that hold for them."""

    unit: str
    """What the user calls a gang."""
    train: tuple[GangView, ...]
    rollout: tuple[GangView, ...]
    max_rollout: int
    min_rollout: int


class QueueThresholdPolicy(Policy[None]):
    """Moves one gang when the queue is above or below its thresholds. Needs no memory of its own."""

    def __init__(self, config: QueueThresholdConfig) -> None:
        self._config = config

    def initial_state(self) -> None:
        """There is none."""

    def decide(self, observation: Observation, state: None) -> tuple[Plan, None]:
        """The rule above, as one plan of at most one move."""
        pool = self._pool(observation)
        numbers = self._numbers(observation, pool)
        needed = needed_move(observation, pool.min_rollout, pool.max_rollout)
        if needed is not None:
            move, reason = needed
            return Plan(moves=(move,), reason=reason, numbers=numbers), None
        obstacle = self._obstacle(observation)
        if obstacle is not None:
            return Plan(reason=obstacle, numbers=numbers), None
        assert observation.queue_length is not None, "an unknown queue is an obstacle"
        queue_length = observation.queue_length + observation.client_queue
        if queue_length > self._config.queue_high:
            moves, reason = self._grow_rollout(pool, observation.legal_trainer_sizes)
            reason = f"queue {queue_length:g} is above {self._config.queue_high}: {reason}"
        elif queue_length < self._config.queue_low:
            moves, reason = self._shrink_rollout(pool, observation.legal_trainer_sizes)
            reason = f"queue {queue_length:g} is below {self._config.queue_low}: {reason}"
        else:
            moves, reason = (), f"queue {queue_length:g} is between the thresholds"
        return Plan(moves=moves, reason=reason, numbers=numbers), None

    def _pool(self, observation: Observation) -> _Pool:
        present = observation.staying
        fewest, most = rollout_bounds(self._config, present)
        return _Pool(
            unit=observation.unit,
            train=tuple(gang for gang in present if gang.role is Role.TRAIN),
            rollout=tuple(gang for gang in present if gang.role is Role.ROLLOUT),
            max_rollout=most,
            min_rollout=fewest,
        )

    def _obstacle(self, observation: Observation) -> str | None:
        """Why nothing may move now, whatever the queue."""
        if observation.queue_length is None:
            return "queue length is unknown"
        if observation.moving:
            return "a move is under way"
        if observation.last_move_end_s is not None:
            rest_s = observation.last_move_end_s + self._config.cooldown_s - observation.time_s
            if rest_s > 0:
                return f"cooldown for another {rest_s:.1f} s"
        return None

    def _grow_rollout(self, pool: _Pool, legal_trainer_sizes: tuple[int, ...]) -> tuple[tuple[Move, ...], str]:
        num_train = len(pool.train) - 1
        if num_train < 1:
            return (), f"training keeps its last {pool.unit}"
        if len(pool.rollout) >= pool.max_rollout:
            return (), f"rollout has its largest share, {pool.max_rollout} {pool.unit}s"
        if num_train not in legal_trainer_sizes:
            return (), f"the trainer cannot run on {num_train} {pool.unit}s"
        gang = order_for_rollout(pool.train)[0]
        return (Move(gang_id=gang.id, to=Role.ROLLOUT),), f"one more rollout {pool.unit}"

    def _shrink_rollout(self, pool: _Pool, legal_trainer_sizes: tuple[int, ...]) -> tuple[tuple[Move, ...], str]:
        if len(pool.rollout) <= pool.min_rollout:
            return (), f"rollout has its smallest share, {pool.min_rollout} {pool.unit}s"
        num_train = len(pool.train) + 1
        if num_train not in legal_trainer_sizes:
            return (), f"the trainer cannot run on {num_train} {pool.unit}s"
        gang = order_for_training(pool.rollout)[0]
        return (Move(gang_id=gang.id, to=Role.TRAIN),), f"one rollout {pool.unit} fewer"

    def _numbers(self, observation: Observation, pool: _Pool) -> Mapping[str, float]:
        numbers: dict[str, float] = {
            "queue_high": self._config.queue_high,
            "queue_low": self._config.queue_low,
            "num_train": len(pool.train),
            "num_rollout": len(pool.rollout),
            "max_rollout": pool.max_rollout,
            "min_rollout": pool.min_rollout,
        }
        if observation.queue_length is not None:
            numbers["queue_length"] = observation.queue_length
        if observation.client_queue:
            numbers["client_queue"] = observation.client_queue
        return numbers
