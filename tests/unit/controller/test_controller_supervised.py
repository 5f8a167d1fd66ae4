"""Whole runs on virtual time that learn from a data set: every row once an epoch, whatever happens to the workers."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from simulated_run import SimulatedRun, ask, make_config, simulate
from simulated_world import World

from rlserve.config.tree import CheckpointConfig, EvaluationConfig, RunConfig
from rlserve.errors import WorkerFailedError
from rlserve.manager.roles import Role
from rlserve.pool.config import PoolConfig
from rlserve.pool.gangs import Node
from rlserve.rollout.config import DataConfig
from rlserve.supervised.loading import load_source
from rlserve.supervised.source import SupervisedSource
from rlserve.tasks.character_tokenizer import character_tokenizer
from rlserve.tracking import names
from rlserve.tracking.events import FailureEvent
from rlserve.tracking.run_folder import RunFolder
from rlserve.trainers.algorithms.supervised.config import SFTConfig

NUM_ROWS, BATCH_SIZE = 40, 4


def source(tmp_path: Path) -> SupervisedSource:
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": str(number), "completion": "1"} for number in range(NUM_ROWS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(path=str(path), held_out_path=str(path))
    return load_source(
        data, SFTConfig(batch_size=BATCH_SIZE), character_tokenizer("0123456789"), seed=0, model_length=64
    )


def run_config(num_steps: int, **parts: object) -> RunConfig:
    defaults = {
        "num_steps": num_steps,
        "algorithm": SFTConfig(batch_size=BATCH_SIZE),
        "pool": PoolConfig(max_worker_failures=10_000),
    }
    return make_config(**defaults | parts)


def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path, "simulated")


Batches = tuple[tuple[str, ...], ...]
"""Sample ids of every step."""


async def note_batches(run: SimulatedRun, longest: list[Batches]) -> None:
    """Keep those of the trainer that has completed the most steps, as long as the run goes on."""
    while True:
        await asyncio.sleep(0.1)
        for worker in run.living(Role.TRAIN):
            if worker.batches and (not longest or len(worker.batches) > len(longest[-1])):
                longest.append(worker.batches)


def assert_every_row_once_an_epoch(batches: Batches) -> None:
    trained = [name for batch in batches for name in batch]
    per_epoch = NUM_ROWS
    for first in range(0, len(trained) - per_epoch + 1, per_epoch):
        epoch = first // per_epoch
        assert sorted(trained[first : first + per_epoch]) == sorted(f"{epoch}:{row}/0" for row in range(NUM_ROWS))


def test_all_slots_train_and_the_loss_on_held_out_rows_is_taken_before_in_mid_run_and_after(tmp_path: Path) -> None:
    config = run_config(20, evaluation=EvaluationConfig(every_steps=10))
    seen: list[int] = []

    async def look(run: SimulatedRun) -> None:
        while True:
            await asyncio.sleep(1.0)
            seen.append(len(run.living(Role.TRAIN)))

    run = simulate(config, folder(tmp_path), num_slots=3, disturb=look, data=source(tmp_path))
    assert max(seen) == 3
    losses = {step: metrics["val/loss"] for step, metrics in run.tracker.logged if "val/loss" in metrics}
    assert losses == {0: 1.0, 10: 1 / 11, 20: 1 / 21}
    summary = run.controller.summary()
    assert summary.learns_from_data
    assert summary.num_steps == summary.final_weight_version == 20
    assert summary.held_out_before is not None
    assert summary.held_out_after is not None
    assert summary.held_out_before < summary.held_out_after
    assert not [name for _, metrics in run.tracker.logged for name in metrics if name.startswith(("vllm", "rollout"))]


def test_one_slot_is_enough(tmp_path: Path) -> None:
    run = simulate(run_config(3), folder(tmp_path), num_slots=1, data=source(tmp_path))
    assert run.controller.summary().num_steps == 3


def test_lost_trainers_come_back_and_no_row_is_trained_twice_or_left_out(tmp_path: Path) -> None:
    async def kill(run: SimulatedRun) -> None:
        while True:
            await asyncio.sleep(run.fleet.world.chance.uniform(5.0, 40.0))
            victims = run.living(Role.TRAIN)
            if len(victims) > 1:
                run.fleet.world.chance.choice(victims).kill()

    found: list[Batches] = []

    async def watch(run: SimulatedRun) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(kill(run))
            tasks.create_task(note_batches(run, found))

    config = run_config(60, evaluation=EvaluationConfig(every_steps=7))
    run = simulate(config, folder(tmp_path), num_slots=4, disturb=watch, world=World(), data=source(tmp_path))
    assert len(run.tracker.of(FailureEvent)) >= 3, "nothing was tried"
    assert run.fleet.world.faults == []
    assert run.controller.summary().num_steps == 60
    assert len(found[-1]) >= 59
    assert_every_row_once_an_epoch(found[-1])


def test_slots_of_a_node_that_joins_train_and_those_of_one_that_leaves_are_emptied(tmp_path: Path) -> None:
    def node(name: str, *, is_draining: bool = False) -> Node:
        return Node(id=name, name=name, counts={"cpu": 1}, is_draining=is_draining)

    cluster = [node("first")]
    seen: list[str] = []
    found: list[Batches] = []

    async def come_and_go(run: SimulatedRun) -> None:
        cluster.append(node("second"))
        while len(run.living(Role.TRAIN)) < 2:
            await asyncio.sleep(0.5)
        seen.append("joined")
        cluster[0] = node("first", is_draining=True)
        while len(run.living(Role.TRAIN)) > 1:
            await asyncio.sleep(0.5)
        seen.append("left")

    async def watch(run: SimulatedRun) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(come_and_go(run))
            tasks.create_task(note_batches(run, found))

    config = run_config(100, pool=PoolConfig(slots="auto"))
    run = simulate(config, folder(tmp_path), num_slots=1, cluster=cluster, disturb=watch, data=source(tmp_path))
    assert seen == ["joined", "left"]
    assert run.controller.summary().worker_failures == 0
    assert len(found[-1]) >= 99
    assert_every_row_once_an_epoch(found[-1])


def test_the_loss_of_the_last_trainer_ends_the_run_with_the_remedy(tmp_path: Path) -> None:
    async def kill(run: SimulatedRun) -> None:
        await asyncio.sleep(15.0)
        for worker in run.living(Role.TRAIN):
            worker.kill()

    with pytest.raises(WorkerFailedError, match="continue with --resume"):
        simulate(run_config(500), folder(tmp_path), num_slots=2, disturb=kill, data=source(tmp_path))


def test_a_run_that_was_stopped_goes_on_with_the_next_rows(tmp_path: Path) -> None:
    config, place = run_config(50, checkpoint=CheckpointConfig(every_steps=5)), folder(tmp_path)

    async def stop(run: SimulatedRun) -> None:
        while run.controller.summary().num_steps < 12:
            await asyncio.sleep(0.1)
        run.controller.request_stop()

    stopped = simulate(config, place, num_slots=2, disturb=stop, data=source(tmp_path))
    assert stopped.controller.stopped_early
    again: list[Batches] = []

    async def watch(run: SimulatedRun) -> None:
        await note_batches(run, again)

    resumed = simulate(config, place, num_slots=2, resume=True, disturb=watch, data=source(tmp_path))
    assert resumed.controller.summary().num_steps == 50
    assert len(again[-1]) >= 49
    assert_every_row_once_an_epoch(again[-1])


def test_nothing_is_moved_by_hand_where_all_train(tmp_path: Path) -> None:
    answers = []

    async def move(run: SimulatedRun) -> None:
        await asyncio.sleep(5.0)
        answers.append(await ask(run, "move", "cpu/0", "rollout"))

    simulate(run_config(60), folder(tmp_path), num_slots=2, disturb=move, data=source(tmp_path))
    assert "all gangs train (algorithm.name=sft)" in answers[0]["message"]


def test_held_out_metrics_have_a_score_for_the_best_checkpoint(tmp_path: Path) -> None:
    checkpoint = CheckpointConfig(every_steps=5, keep=1, keep_best=1)
    config = run_config(10, checkpoint=checkpoint, evaluation=EvaluationConfig(every_steps=5))
    run = simulate(config, folder(tmp_path), num_slots=2, data=source(tmp_path))
    scores = [metrics[names.HELD_OUT] for _, metrics in run.tracker.logged if names.HELD_OUT in metrics]
    assert scores == sorted(scores)
    assert all(0 < score < 1 for score in scores)
