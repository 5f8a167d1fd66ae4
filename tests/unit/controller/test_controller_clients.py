"""Clients of a run, through moves, losses and new weights, on virtual time."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from client_setting import Clients
from simulated_run import SimulatedRun, make_config, simulate
from simulated_world import Speeds, World

from rlserve.config.tree import EvaluationConfig, RunConfig
from rlserve.controller.clients.desk import ClientDesk
from rlserve.engine.config import EngineConfig
from rlserve.manager.config import QueueThresholdConfig
from rlserve.manager.roles import Role
from rlserve.pool.config import PoolConfig
from rlserve.rollout.config import RolloutConfig
from rlserve.serving.run_server_config import RunServerConfig
from rlserve.tracking import names
from rlserve.tracking.events import Decision, TokensEvent
from rlserve.tracking.run_folder import RunFolder

ROLLOUT = RolloutConfig(
    prompts_per_step=4,
    samples_per_prompt=2,
    max_staleness=2,
    request_timeout_s=60.0,
    engine=EngineConfig(max_num_sequences=8),
    server=RunServerConfig(max_share=0.25, wait_timeout_s=600.0),
)


def config_of(num_steps: int, **parts: object) -> RunConfig:
    defaults = {
        "num_steps": num_steps,
        "rollout": ROLLOUT,
        "pool": PoolConfig(max_worker_failures=10_000),
        "manager": QueueThresholdConfig(queue_high=2, queue_low=1, cooldown_s=20.0),
        "evaluation": EvaluationConfig(every_steps=50),
    }
    return make_config(**defaults | parts)


def square_wave(time_s: float) -> float:
    """Answers take long, then little, then long again."""
    return 8.0 if int(time_s / 300) % 2 else 0.5


async def losses(run: SimulatedRun) -> None:
    """Replicas die, hang or make no step any more; never the last one."""
    chance, number = run.fleet.world.chance, 0
    while True:
        await asyncio.sleep(chance.uniform(30.0, 120.0))
        if len(victims := run.living(Role.ROLLOUT)) > 1:
            victim = chance.choice(victims)
            (victim.kill, victim.hang, victim.wedge)[number % 3]()
            number += 1


def with_clients(
    config: RunConfig, folder: RunFolder, *, num: int, world: World, disturbed: bool = False
) -> tuple[SimulatedRun, Clients]:
    made: list[Clients] = []

    def front(desk: ClientDesk) -> Clients:
        made.append(Clients(desk, num=num))
        return made[0]

    run = simulate(config, folder, world=world, front=front, disturb=losses if disturbed else None)
    return run, made[0]


def test_answers_end_right_through_moves_losses_and_new_weights_and_training_counts_its_own(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "clients")
    world = World(speeds=Speeds(token_s=0.05, load=square_wave), seed=3)
    run, clients = with_clients(config_of(100), folder, num=6, world=world, disturbed=True)
    run.check(max_staleness=2)
    summary = run.controller.summary()
    assert summary.groups_trained == len(run.trained) == 400
    assert summary.worker_failures >= 3
    assert min(summary.moves_to_train, summary.moves_to_rollout) >= 2
    assert len(clients.heard) > 150
    assert clients.num_left > 10
    for heard in clients.heard:
        heard.check()
    assert sum(len(set(heard.versions)) > 1 for heard in clients.heard) > 10, "answers that saw new weights"
    assert set(summary.groups_dropped) <= {"not_needed"}
    assert summary.groups_admitted == 400 + sum(summary.groups_dropped.values()), "clients are no groups"
    num_read = sum(len(heard.versions) for heard in clients.heard)
    assert sum(event.num_clients for event in run.tracker.of(TokensEvent)) >= num_read, "their tokens are told apart"
    scored = [metrics[names.HELD_OUT] for _, metrics in run.tracker.logged if names.HELD_OUT in metrics]
    assert len(scored) == 3


def test_requests_wait_while_all_slots_train(tmp_path: Path) -> None:
    config = config_of(20, pool=PoolConfig(placement="colocated"))
    world = World(seed=5)
    run, clients = with_clients(config, RunFolder.create(tmp_path, "turns"), num=4, world=world)
    run.check(max_staleness=2)
    assert len(clients.heard) > 20
    for heard in clients.heard:
        heard.check()
    assert any(len(set(heard.versions)) > 1 for heard in clients.heard), "some waited for a turn of training"


@pytest.mark.parametrize("placement", ["separate", "colocated"])
def test_who_waits_too_long_is_told_so(tmp_path: Path, placement: str) -> None:
    """Replicas that take a minute to come up are not waited for so long."""
    rollout = replace(ROLLOUT, server=RunServerConfig(wait_timeout_s=5.0))
    config = config_of(3, rollout=rollout, pool=PoolConfig(placement=placement))
    world = World(speeds=Speeds(start_s=60.0), seed=5)
    run, clients = with_clients(config, RunFolder.create(tmp_path, "late"), num=2, world=world)
    run.check(max_staleness=2)
    errors = [output.error for heard in clients.heard for output in heard.outputs if output.error]
    assert errors
    assert all(error.startswith("no replica has gone on with it for") for error in errors)
    assert any(output.error is None for heard in clients.heard for output in heard.outputs)


def test_a_queue_of_clients_moves_slots_to_rollout(tmp_path: Path) -> None:
    """There is room for all samples of the training, so its own queue says nothing."""
    rollout = replace(ROLLOUT, engine=EngineConfig(max_num_sequences=24), max_staleness=1)
    manager = QueueThresholdConfig(queue_high=4, queue_low=1, cooldown_s=5.0)
    config = config_of(12, rollout=rollout, manager=manager)

    def moves(num_clients: int) -> tuple[int, list[Decision]]:
        folder = RunFolder.create(tmp_path, f"clients-{num_clients}")
        run, _ = with_clients(config, folder, num=num_clients, world=World(speeds=Speeds(token_s=0.05), seed=3))
        run.check(max_staleness=1)
        decisions = [event for event in run.tracker.of(Decision) if event.action == "to_rollout"]
        return run.controller.summary().moves_to_rollout, decisions

    assert moves(2) == (0, [])
    num_moves, decisions = moves(40)
    assert num_moves >= 1
    for decision in decisions:
        queue, of_clients = decision.numbers["queue_length"], decision.numbers["client_queue"]
        assert queue is not None
        assert of_clients is not None
        assert queue <= 4 < queue + of_clients
