"""Whole runs on virtual time in which answers are conversations: workers, environments and their processes are lost,
and the bookkeeping holds all the same."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path

import pytest
from simulated_run import SimulatedRun, make_config, simulate
from simulated_world import Speeds, World

from rlserve.config.tree import CheckpointConfig, EvaluationConfig, RunConfig
from rlserve.controller.events import GroupsTrained
from rlserve.engine.config import EngineConfig
from rlserve.errors import EnvironmentFailedError, WorkerLostError
from rlserve.manager.config import QueueThresholdConfig
from rlserve.manager.roles import Role
from rlserve.pool.config import PoolConfig
from rlserve.rollout.batch import build_batch
from rlserve.rollout.config import RolloutConfig
from rlserve.rollout.environments.base import EnvironmentTask, ModelTurn, Reply
from rlserve.rollout.environments.config import EnvironmentConfig
from rlserve.rollout.groups import ScoredGroup
from rlserve.tracking import names
from rlserve.tracking.run_folder import RunFolder

MAX_TURNS = 4
ENVIRONMENT_TOKEN = 900
"""Of replies; the simulated model never says it."""


class SimulatedSession:
    """Takes a while, and goes on for some turns."""

    def __init__(self, environments: SimulatedEnvironments, task: EnvironmentTask) -> None:
        self._environments = environments
        self._chance = random.Random(f"{task.id} {len(environments.opened)}")
        self.duration_s = 0.0

    async def step(self, turn: ModelTurn) -> Reply:
        environments, draw, step_s = self._environments, self._chance.random(), self._chance.uniform(0.1, 3.0)
        await asyncio.sleep(step_s)
        self.duration_s += step_s
        if draw < environments.share_failed:
            raise EnvironmentFailedError("the environment failed")
        if draw < environments.share_failed + environments.share_lost:
            raise WorkerLostError("its process was lost")
        if self._chance.random() < 0.3:
            return Reply(over=True, reward=1.0)
        return Reply(token_ids=(ENVIRONMENT_TOKEN,) * self._chance.randint(1, 3), reward=0.25)

    def close(self) -> None:
        self._environments.num_open -= 1


class SimulatedEnvironments:
    """Counts what is open."""

    def __init__(self, *, share_failed: float = 0.0, share_lost: float = 0.0) -> None:
        self.share_failed = share_failed
        self.share_lost = share_lost
        self.opened: Counter[str] = Counter()
        self.num_open = 0
        self.is_closed = False

    async def start(self) -> None:
        await asyncio.sleep(1.0)

    async def open(self, task: EnvironmentTask) -> SimulatedSession:
        await asyncio.sleep(0.1)
        self.opened[task.id] += 1
        self.num_open += 1
        return SimulatedSession(self, task)

    def close(self) -> None:
        self.is_closed = True


def run_config(num_steps: int, **parts: object) -> RunConfig:
    defaults = {
        "num_steps": num_steps,
        "rollout": RolloutConfig(
            prompts_per_step=4,
            samples_per_prompt=2,
            max_staleness=1,
            request_timeout_s=60.0,
            engine=EngineConfig(max_num_sequences=4),
        ),
        "environment": EnvironmentConfig(name="game:Game", max_turns=MAX_TURNS, max_failure_share=0.5),
        "pool": PoolConfig(max_worker_failures=10_000),
        "manager": QueueThresholdConfig(queue_high=2, queue_low=1, cooldown_s=20.0),
    }
    return make_config(**defaults | parts)


def world(seed: int) -> World:
    return World(speeds=Speeds(token_s=0.05), lengths=(5, 30), seed=seed)


def check_sample_by_sample(groups: list[ScoredGroup]) -> None:
    """The mask tells the environment's tokens, and every sample ends with the model's."""
    batch = build_batch(groups)
    for scored in groups:
        for sample, conversation in zip(scored.output.samples, scored.conversations, strict=True):
            said_by_environment = sample.tokens.token_ids == ENVIRONMENT_TOKEN
            assert (said_by_environment == ~conversation.loss_mask).all()
            assert conversation.loss_mask[-1]
            assert len(conversation.turn_spans()) == conversation.num_turns <= MAX_TURNS
            assert sorted(sample.weight_versions) == list(sample.weight_versions), "versions never go back"
    masks = [conversation.loss_mask for scored in groups for conversation in scored.conversations]
    assert batch.loss_mask.sum() == sum(mask.sum() for mask in masks)


async def chaos(run: SimulatedRun) -> None:
    """Now and then a replica is killed."""
    chance = run.fleet.world.chance
    while True:
        await asyncio.sleep(chance.uniform(20.0, 60.0))
        victims = run.living(Role.ROLLOUT)
        if len(victims) > 1:
            chance.choice(victims).kill()


def test_conversations_survive_replicas_environments_and_processes_that_are_lost(tmp_path: Path) -> None:
    environments = SimulatedEnvironments(share_failed=0.01, share_lost=0.02)
    trained: list[ScoredGroup] = []

    async def disturb(run: SimulatedRun) -> None:
        run.controller._run.events.subscribe(GroupsTrained, lambda event: trained.extend(event.groups))
        await chaos(run)

    run = simulate(
        run_config(60, evaluation=EvaluationConfig(every_steps=20)),
        RunFolder.create(tmp_path, "simulated"),
        world=world(3),
        disturb=disturb,
        environments=environments,
    )
    run.check(max_staleness=1)
    summary = run.controller.summary()
    assert summary.num_steps == 60
    assert set(summary.groups_dropped) <= {"environment_error", "not_needed"}
    assert summary.groups_dropped["environment_error"] >= 1
    assert summary.groups_admitted == 240 + sum(summary.groups_dropped.values()), "each has ended"
    assert summary.worker_failures >= 3
    in_training = [number for name, number in environments.opened.items() if name.startswith("0:")]
    assert max(in_training) >= 2, "some began anew"
    assert environments.num_open == 0, "all are closed, those of surplus groups too"
    assert environments.is_closed
    check_sample_by_sample(trained)
    logged = [metrics for step, metrics in run.tracker.logged if "rollout/num_turns/mean" in metrics]
    assert len(logged) == 60
    assert all(1 <= metrics["rollout/num_turns/mean"] <= MAX_TURNS for metrics in logged)
    assert any(metrics.get("rollout/num_environment_failures") for metrics in logged)
    held_out = [metrics for step, metrics in run.tracker.logged if names.HELD_OUT in metrics]
    assert len(held_out) == 4
    assert all("val-core/held_out/environment/mean@1" in metrics for metrics in held_out)


def test_a_run_that_is_stopped_in_mid_conversation_goes_on_with_all_its_groups(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "simulated")
    config = run_config(30, checkpoint=CheckpointConfig(every_steps=10))

    async def stop(run: SimulatedRun) -> None:
        while not run.tracker.logged or run.tracker.logged[-1][0] < 12:
            await asyncio.sleep(0.5)
        run.controller.request_stop()

    first = simulate(config, folder, world=world(5), disturb=stop, environments=SimulatedEnvironments())
    assert 12 <= first.controller.summary().num_steps < 30
    second = simulate(config, folder, world=world(6), resume=True, environments=SimulatedEnvironments())
    second.check(max_staleness=1)
    trained = first.trained + second.trained
    assert len(trained) == len(set(trained)) == 120, "nothing is trained twice"
    summary = second.controller.summary()
    assert summary.groups_admitted == 120 + sum(summary.groups_dropped.values()), "and nothing is lost"


def test_too_many_failures_of_the_environment_stop_the_run(tmp_path: Path) -> None:
    config = run_config(60, environment=EnvironmentConfig(name="game:Game", max_failure_share=0.1))
    with pytest.raises(EnvironmentFailedError, match=r"failed\nthe environment failed for 4 of the last 32 .* \(3\)"):
        simulate(
            config,
            RunFolder.create(tmp_path, "simulated"),
            world=world(7),
            environments=SimulatedEnvironments(share_failed=0.3),
        )
