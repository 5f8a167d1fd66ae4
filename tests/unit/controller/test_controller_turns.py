"""Both roles in turn on the same gangs (pool.placement=colocated), with the whole controller on virtual time."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from simulated_run import SimulatedRun, SimulatedScorer, ask, make_config, simulate
from simulated_world import Speeds, World

from rlserve.config.tree import CheckpointConfig, EvaluationConfig, RunConfig
from rlserve.engine.config import EngineConfig
from rlserve.errors import WeightsRefusedError, WorkerFailedError
from rlserve.manager.roles import Role
from rlserve.pool.config import ColocatedConfig, PoolConfig
from rlserve.pool.notices.base import Notice
from rlserve.rollout.config import RolloutConfig
from rlserve.tracking import names
from rlserve.tracking.events import Decision, FailureEvent, SlotEvent, StepEvent, TrainedBatch, TurnEvent
from rlserve.tracking.run_folder import RunFolder


def run_config(
    num_steps: int, *, max_staleness: int = 1, colocated: ColocatedConfig | None = None, **parts: Any
) -> RunConfig:
    defaults = {
        "num_steps": num_steps,
        "rollout": RolloutConfig(
            prompts_per_step=4,
            samples_per_prompt=2,
            max_staleness=max_staleness,
            request_timeout_s=60.0,
            engine=EngineConfig(max_num_sequences=4),
        ),
        "pool": PoolConfig(
            placement="colocated",
            max_worker_failures=10_000,
            colocated=colocated or ColocatedConfig(),
        ),
    }
    return make_config(**defaults | parts)


def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path, "simulated")


def both_roles(run: SimulatedRun) -> list[tuple[float, set[str]]]:
    """Every moment at which some slots train and others roll out."""
    owners: dict[str, str] = {}
    found = []
    for event in run.tracker.of(SlotEvent):
        owners[event.slot_id] = event.owner
        if {"train", "rollout"} <= set(owners.values()):
            found.append((event.time_s, set(owners.values())))
    return found


@pytest.mark.parametrize("max_staleness", [0, 1, 3])
def test_all_gangs_have_both_roles_in_turn_and_the_bound_on_staleness_holds(tmp_path: Path, max_staleness: int) -> None:
    run = simulate(
        run_config(30, max_staleness=max_staleness), folder(tmp_path), world=World(speeds=Speeds(token_s=0.06), seed=4)
    )
    run.check(max_staleness=max_staleness)
    summary = run.controller.summary()
    assert (summary.num_steps, summary.worker_failures) == (30, 0)
    assert both_roles(run) == []
    assert {event.owner for event in run.tracker.of(SlotEvent)} == {"train", "rollout", "moving"}
    turns = [event.to for event in run.tracker.of(TurnEvent)]
    assert turns[:4] == ["rollout", "train", "rollout", "train"]
    assert {event.released_bytes for event in run.tracker.of(TurnEvent)} == {6 * 200, 6 * 50}
    if max_staleness == 0:
        assert all(set(batch.oldest_versions) == {batch.step - 1} for batch in run.tracker.of(TrainedBatch))
        assert len(turns) == 2 * 30 + 1, "one turn of either for each step, and one for the last score"
    else:
        assert run.fleet.world.num_kept_tokens > 0, "unfinished samples went on with their tokens"
        assert summary.max_staleness == max_staleness or max_staleness > 1
    assert run.tracker.of(Decision) == []


def test_training_waits_for_as_many_batches_as_a_turn_is_to_have(tmp_path: Path) -> None:
    config = run_config(7, max_staleness=2, colocated=ColocatedConfig(batches_per_turn=3))
    run = simulate(config, folder(tmp_path), world=World(speeds=Speeds(token_s=0.06), seed=4))
    run.check(max_staleness=2)
    assert run.controller.summary().num_steps == 7
    steps_of_turns: list[int] = []
    for record in run.tracker.records:
        if isinstance(record, TurnEvent) and record.to == "train":
            steps_of_turns.append(0)
        elif isinstance(record, StepEvent):
            steps_of_turns[-1] += 1
    assert steps_of_turns == [3, 3, 1], "the last turn has what is left"


def test_rollout_has_its_share_of_the_time(tmp_path: Path) -> None:
    def share_of_rollout(name: str, wanted: float) -> float:
        config = run_config(20, max_staleness=3, colocated=ColocatedConfig(rollout_time_share=wanted))
        run = simulate(config, RunFolder.create(tmp_path, name), world=World(speeds=Speeds(token_s=0.02), seed=4))
        run.check(max_staleness=3)
        turns = run.tracker.of(TurnEvent)
        spans = [(before.to, after.begin_s - before.time_s) for before, after in pairwise(turns)]
        times = {role: sum(span for to, span in spans[2:] if to == role) for role in ("train", "rollout")}
        return times["rollout"] / sum(times.values())

    assert share_of_rollout("half", 0.5) > share_of_rollout("any", 0.0) + 0.05


async def chaos(run: SimulatedRun) -> None:
    """Now and then a worker is lost, whatever it does."""
    chance, number = run.fleet.world.chance, 0
    while True:
        await asyncio.sleep(chance.uniform(20.0, 60.0))
        living = run.living(Role.ROLLOUT) or run.living(Role.TRAIN)
        if len(living) < 4:
            continue
        victim = chance.choice(living)
        (victim.kill, victim.hang)[number % 2]()
        number += 1


def test_workers_lost_in_either_turn(tmp_path: Path) -> None:
    config = run_config(
        80,
        max_staleness=2,
        evaluation=EvaluationConfig(every_steps=40),
        checkpoint=CheckpointConfig(every_steps=60, keep=2),
    )
    run = simulate(
        config,
        folder(tmp_path),
        world=World(seed=4),
        scorer=SimulatedScorer(share_failed=0.01, share_left_out=0.02),
        disturb=chaos,
    )
    run.check(max_staleness=2)
    summary = run.controller.summary()
    assert summary.num_steps == 80
    assert summary.worker_failures == len(run.tracker.of(FailureEvent)) == run.fleet.num_restarts >= 5
    assert summary.engine_restarts not in (0, summary.worker_failures), "some were lost in either turn"
    assert both_roles(run) == []
    scored = [step for step, metrics in run.tracker.logged if names.HELD_OUT in metrics]
    assert scored == [*range(0, 81, 40)]
    assert [path.name for path in sorted(run.folder.checkpoints.iterdir())] == ["step_000060", "step_000080"]


async def end_movers(run: SimulatedRun) -> None:
    """Whoever is on its way from one role to the other may die, or stop, at any moment of it."""
    chance = run.fleet.world.chance
    while not run.trained:
        await asyncio.sleep(0.5)
    while True:
        await asyncio.sleep(0.05)
        owners = {event.slot_id: event.owner for event in run.tracker.of(SlotEvent)}
        moving = [slot_id for slot_id in run.fleet.ready if owners[slot_id] == "moving"]
        others = [worker for worker in run.fleet.workers.values() if not (worker.dead or worker.hung)]
        if moving and len(others) > 4 and chance.random() < 0.02:
            worker = run.fleet.workers[chance.choice(moving)]
            chance.choice((worker.kill, worker.hang))()


def test_workers_lost_at_every_moment_of_a_change_of_turn(tmp_path: Path) -> None:
    run = simulate(run_config(25), folder(tmp_path), world=World(seed=5), disturb=end_movers)
    run.check(max_staleness=1)
    assert run.controller.summary().num_steps == 25
    assert run.controller.summary().worker_failures >= 3


def test_all_lost_while_they_roll_out_end_the_run(tmp_path: Path) -> None:
    async def lose_all(run: SimulatedRun) -> None:
        while len(run.trained) < 20 or not run.living(Role.ROLLOUT):
            await asyncio.sleep(0.1)
        for worker in run.living(Role.ROLLOUT):
            worker.kill()

    with pytest.raises(WorkerFailedError, match=r"no trainer is left that holds the state \(.* --resume"):
        simulate(run_config(100), folder(tmp_path), disturb=lose_all)


def test_an_engine_with_other_weights_than_were_trained_ends_the_run(tmp_path: Path) -> None:
    async def garble(run: SimulatedRun) -> None:
        while not run.trained:
            await asyncio.sleep(0.1)
        run.living(Role.TRAIN)[0].garbled = True

    message = r"reports version 1 with fingerprint 0000000000000007, trained was version 1 with 00000000000003e9"
    with pytest.raises(WeightsRefusedError, match=message):
        simulate(run_config(100), folder(tmp_path), disturb=garble)


def test_no_gang_is_moved_by_hand(tmp_path: Path) -> None:
    answers: list[dict[str, Any]] = []

    async def move(run: SimulatedRun) -> None:
        while not run.trained:
            await asyncio.sleep(0.1)
        answers.append(await ask(run, "move", "cpu/0", "train"))

    simulate(run_config(10), folder(tmp_path), disturb=move)
    assert [(answer["outcome"], "pool.placement=colocated" in answer["message"]) for answer in answers] == [
        ("refused", True)
    ]


def test_one_slot_is_enough(tmp_path: Path) -> None:
    run = simulate(run_config(10), folder(tmp_path), num_slots=1)
    run.check(max_staleness=1)
    assert run.controller.summary().num_steps == 10


def test_a_run_that_is_stopped_while_it_rolls_out_goes_on_where_it_was(tmp_path: Path) -> None:
    config, place = run_config(40), folder(tmp_path)

    async def stop(run: SimulatedRun) -> None:
        while len(run.trained) < 40 or not run.living(Role.ROLLOUT):
            await asyncio.sleep(0.1)
        run.controller.request_stop()

    first = simulate(config, place, disturb=stop)
    first.check(max_staleness=1)
    assert first.controller.stopped_early
    second = simulate(config, place, resume=True)
    second.check(max_staleness=1)
    assert second.controller.summary().num_steps == 40
    trained = [*first.trained, *second.trained]
    assert len(set(trained)) == len(trained) == 160, "nothing is lost, and nothing is trained twice"


def test_a_gang_that_is_given_notice_leaves_in_a_turn_of_training(tmp_path: Path) -> None:
    async def give_notice(run: SimulatedRun) -> None:
        while not (run.trained and run.living(Role.ROLLOUT)):
            await asyncio.sleep(0.1)
        run.living(Role.ROLLOUT)[0].notice = Notice(reason="its time is over", grace_s=300.0)

    run = simulate(run_config(20), folder(tmp_path), num_slots=3, disturb=give_notice)
    run.check(max_staleness=1)
    assert (run.controller.summary().num_steps, run.controller.summary().worker_failures) == (20, 0)
    last = {event.slot_id: event.owner for event in run.tracker.of(SlotEvent)}
    assert sorted(last.values()).count("gone") == 1
