"""A run as rate matching sees it, made from known rates: what it decides can be held against what is best."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from manager_builders import H100, H200, make_gang, make_observation

from rlserve.manager.config import RateMatchingConfig
from rlserve.manager.measurement.figures import DecodeCurve, Measurements, MoveCost, Progress, ReplicaRate, TrainRate
from rlserve.manager.policies.base import GangView, Observation, Plan
from rlserve.manager.policies.rate_matching import RateMatchingPolicy
from rlserve.manager.policies.rate_memory import RateState
from rlserve.manager.roles import Role

STEP_S, SAMPLE_S = 0.0065, 0.00024
TOKENS = 3000.0
"""Of a group of one sample."""


def gangs_of(num_train: int, num_rollout: int, kind: str = "H100") -> list[GangView]:
    """Gangs of one type."""
    roles = [Role.TRAIN] * num_train + [Role.ROLLOUT] * num_rollout
    figures = H200 if kind == "H200" else H100
    return [replace(make_gang(f"{kind}-{n:03}", role, figures=figures), type=kind) for n, role in enumerate(roles)]


@dataclass
class World:
    """Gangs whose rates are known: a replica makes ``replica_rate`` groups a second, a trainer trains ``trainer_rate``,
    each gang more up to ``useful_trainers``."""

    gangs: list[GangView]
    kept_share: float = 0.7
    replica_rate: float = 1.0
    trainer_rate: float = 1.0
    useful_trainers: int = 10_000
    num_observed: int = 400
    noise: random.Random | None = None
    move_s: float = 3.0
    busy: float | None = None
    time_s: float = 1000.0
    last_move_end_s: float | None = None
    moved: list[Role] = field(default_factory=list)
    sizes: dict[int, TrainRate] = field(default_factory=dict)

    def counts(self) -> tuple[int, int]:
        """Gangs in training and in rollout."""
        return tuple(sum(gang.role is role for gang in self.gangs) for role in (Role.TRAIN, Role.ROLLOUT))

    def rate(self, num_train: int, num_rollout: int) -> float:
        """Groups a second."""
        return min(
            min(num_train, self.useful_trainers) * self.trainer_rate, self.kept_share * num_rollout * self.replica_rate
        )

    def measure(self) -> Measurements:
        """What the meter would say, with noise on the kept share and on the progress."""
        (num_train, num_rollout), noise = self.counts(), self.noise
        kept, error = self.kept_share, (self.kept_share * (1 - self.kept_share) / self.num_observed) ** 0.5
        if noise is not None:
            kept = min(max(kept + error * noise.gauss(0, 1), 0.02), 1.0)
        rate = self.rate(num_train, num_rollout)
        tokens_per_s = min(num_train, self.useful_trainers) * self.trainer_rate * TOKENS
        types = tuple(sorted(gang.type for gang in self.gangs if gang.role is Role.TRAIN))
        self.sizes[num_train] = TrainRate(
            types=types,
            step_s=1.0,
            tokens_per_s=tokens_per_s,
            token_s=1.0 / tokens_per_s,
            early_s=0.0,
            num_steps=5,
            last_s=self.time_s,
        )
        step_s = 64 / (self.replica_rate * TOKENS)
        return Measurements(
            train=tuple(self.sizes.values()),
            replicas=tuple(
                ReplicaRate(
                    gang_id=gang.id,
                    type=gang.type,
                    num_running=64,
                    num_waiting=0,
                    kv_cache_usage=0.5,
                    busy_share=1.0,
                    tokens_per_s=self.replica_rate * TOKENS,
                    mean_running=64.0,
                )
                for gang in self.gangs
                if gang.role is Role.ROLLOUT
            ),
            curves=tuple(
                DecodeCurve(
                    type=kind,
                    busy_s=100.0,
                    mean_batch=64.0,
                    mean_step_s=step_s * (3350 / 4800 if kind == "H200" else 1.0),
                    batch_variance=0.0,
                    covariance=0.0,
                )
                for kind in sorted({gang.type for gang in self.gangs})
            ),
            progress=Progress(
                num_steps=6,
                groups_per_s=rate * (1.0 if noise is None else noise.gauss(1.0, 0.01)),
                wait_share=1 - rate / (min(num_train, self.useful_trainers) * self.trainer_rate),
            ),
            tokens_per_group=TOKENS,
            trained_tokens_per_group=TOKENS,
            kept_share=kept,
            num_kept_observed=self.num_observed,
            weights_s=0.0,
            move_costs={role: MoveCost(duration_s=self.move_s, trainer_pause_s=1.0, num_moves=3) for role in Role},
            host_busy_share=self.busy,
        )

    def observe(self, legal_trainer_sizes: Sequence[int] | None = None) -> Observation:
        """Work for every replica is always there."""
        observation = make_observation(
            tuple(self.gangs), 10_000, time_s=self.time_s, last_move_end_s=self.last_move_end_s
        )
        if legal_trainer_sizes is not None:
            observation = replace(observation, legal_trainer_sizes=tuple(legal_trainer_sizes))
        live = 200 * len(self.gangs) * 64
        return replace(
            observation,
            num_in_flight=10_000 + 64 * self.counts()[1],
            measured=self.measure(),
            admission=replace(observation.admission, prompts_per_step=16, samples_per_prompt=1, max_live_groups=live),
        )

    def carry_out(self, plan: Plan) -> None:
        """Move the gang, which takes its time."""
        for move in plan.moves:
            index = next(n for n, gang in enumerate(self.gangs) if gang.id == move.gang_id)
            assert self.gangs[index].role is not move.to
            self.gangs[index] = replace(self.gangs[index], role=move.to)
            self.moved.append(move.to)
            self.time_s += self.move_s
            self.last_move_end_s = self.time_s


def play(world: World, duration_s: float, config: RateMatchingConfig | None = None) -> list[Plan]:
    """Decide and act for some time, every 10 s."""
    policy = RateMatchingPolicy(config or RateMatchingConfig())
    state: RateState = policy.initial_state()
    plans, end_s = [], world.time_s + duration_s
    while world.time_s < end_s:
        plan, state = policy.decide(world.observe(), state)
        plans.append(plan)
        world.carry_out(plan)
        world.time_s += 10.0
    return plans
