"""The whole controller on virtual time: hours of a run, with moves, losses and stops, in seconds."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from simulated_run import SimulatedRun, SimulatedScorer, make_config, simulate
from simulated_world import Speeds, World

from rlserve.config.tree import CheckpointConfig, EvaluationConfig, RunConfig
from rlserve.engine.config import EngineConfig
from rlserve.errors import DeadlineExceededError, WorkerFailedError
from rlserve.manager.config import QueueThresholdConfig, StaticConfig
from rlserve.manager.roles import Role
from rlserve.pool.config import PoolConfig
from rlserve.rollout.config import RolloutConfig
from rlserve.tracking import names
from rlserve.tracking.cost.config import BudgetConfig, CostConfig
from rlserve.tracking.events import BudgetEvent, Decision, FailureEvent, MoveEvent, SlotEvent, TrainedBatch
from rlserve.tracking.run_folder import RunFolder

MAX_STALENESS = 2


def square_wave(time_s: float) -> float:
    """Answers take long, then little, then long again."""
    return 8.0 if int(time_s / 300) % 2 else 0.5


def run_config(num_steps: int, **parts: object) -> RunConfig:
    """Small batches, and a manager that moves readily."""
    defaults = {
        "num_steps": num_steps,
        "rollout": RolloutConfig(
            prompts_per_step=4,
            samples_per_prompt=2,
            max_staleness=MAX_STALENESS,
            request_timeout_s=60.0,
            engine=EngineConfig(max_num_sequences=4),
        ),
        "pool": PoolConfig(max_worker_failures=10_000),
        "manager": QueueThresholdConfig(queue_high=2, queue_low=1, cooldown_s=20.0),
    }
    return make_config(**defaults | parts)


def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path, "simulated")


async def chaos(run: SimulatedRun) -> None:
    """Every minute or two something happens to a worker; never to the last of a role that is well."""
    chance, number = run.fleet.world.chance, 0
    while True:
        await asyncio.sleep(chance.uniform(30.0, 120.0))
        role = (Role.ROLLOUT, Role.TRAIN)[number % 2]
        victims = run.living(role)
        if len(victims) < 2:
            continue
        victim = chance.choice(victims)
        kinds = (victim.kill, victim.hang, victim.wedge) if role is Role.ROLLOUT else (victim.kill, victim.hang)
        kinds[number // 2 % len(kinds)]()
        number += 1


def test_a_thousand_steps_with_moves_both_ways_and_workers_lost_on_both_sides(tmp_path: Path) -> None:
    config = run_config(
        1000,
        evaluation=EvaluationConfig(every_steps=100),
        checkpoint=CheckpointConfig(every_steps=400, keep=2),
    )
    run = simulate(
        config,
        folder(tmp_path),
        world=World(speeds=Speeds(load=square_wave), seed=3),
        scorer=SimulatedScorer(share_failed=0.01, share_left_out=0.02),
        disturb=chaos,
    )
    run.check(max_staleness=MAX_STALENESS)
    summary = run.controller.summary()
    assert summary.num_steps == 1000
    assert summary.groups_trained == len(run.trained) == 4000
    dropped = summary.groups_dropped
    assert {"reward_error", "reward_left_out"} <= set(dropped) <= {"reward_error", "reward_left_out", "not_needed"}
    assert summary.groups_admitted == 4000 + sum(dropped.values()), "each has ended"
    assert dropped.get("not_needed", 0) <= 3, "hardly more than were needed"
    assert min(summary.moves_to_train, summary.moves_to_rollout) >= 3
    assert run.fleet.world.num_kept_tokens > 1000, "requests that moved took their tokens along"
    failures = run.tracker.of(FailureEvent)
    assert summary.worker_failures == len(failures) == run.fleet.num_restarts >= 20
    reasons = " ".join(event.reason for event in failures)
    for reason in ("its process died", "no sign of life", "has work but made no step"):
        assert reason in reasons
    scored = [step for step, metrics in run.tracker.logged if names.HELD_OUT in metrics]
    assert scored == [*range(0, 1001, 100)]
    logged = [metrics for step, metrics in run.tracker.logged if "training/global_step" in metrics]
    assert [metrics["training/global_step"] for metrics in logged] == [*range(1, 1001)]
    assert [path.name for path in sorted(run.folder.checkpoints.iterdir())] == ["step_000800", "step_001000"]
    owners = {event.owner for event in run.tracker.of(SlotEvent)}
    assert owners == {"train", "rollout", "moving", "dead"}
    assert {decision.action for decision in run.tracker.of(Decision)} == {"hold", "to_rollout", "to_train"}
    moves = run.tracker.of(MoveEvent)
    assert 5 <= len(moves) <= summary.moves_to_train + summary.moves_to_rollout
    assert all(move.begin_s < move.time_s and move.trainer_pause_s >= 0.0 for move in moves)


@pytest.mark.parametrize("recompute_s", [None, 1.0], ids=["keep_kv", "recompute"])
@pytest.mark.parametrize("max_staleness", [0, 1, 3])
def test_the_bound_on_staleness_holds_while_gangs_move(
    tmp_path: Path, max_staleness: int, recompute_s: float | None
) -> None:
    """Whatever becomes of samples under way when new weights come: they keep the versions of their tokens."""
    rollout = RolloutConfig(
        prompts_per_step=4,
        samples_per_prompt=2,
        max_staleness=max_staleness,
        request_timeout_s=60.0,
        engine=EngineConfig(max_num_sequences=4),
    )
    manager = QueueThresholdConfig(queue_high=2, queue_low=1, cooldown_s=10.0)
    world = World(speeds=Speeds(token_s=0.06, load=square_wave), recompute_s=recompute_s, seed=4)
    run = simulate(run_config(60, rollout=rollout, manager=manager), folder(tmp_path), world=world)
    run.check(max_staleness=max_staleness)
    summary = run.controller.summary()
    assert summary.num_steps == 60
    assert summary.max_staleness == max_staleness, "the bound is reached, and never passed"
    assert min(summary.moves_to_train, summary.moves_to_rollout) >= 1
    assert world.num_kept_tokens == world.num_returned_tokens, "no token is lost with a move"
    if max_staleness:
        assert world.num_kept_tokens > 0, "requests moved with their tokens"
    else:
        assert all(set(batch.oldest_versions) == {batch.step - 1} for batch in run.tracker.of(TrainedBatch))


def test_separate_roles_stay_whatever_the_queue(tmp_path: Path) -> None:
    pool = PoolConfig(placement="separate")
    run = simulate(run_config(20, pool=pool), folder(tmp_path), world=World(speeds=Speeds(load=square_wave), seed=4))
    run.check(max_staleness=MAX_STALENESS)
    summary = run.controller.summary()
    assert (summary.moves_to_rollout, summary.moves_to_train) == (0, 0)
    assert {decision.reason for decision in run.tracker.of(Decision)} == {"the split is static"}


async def end_movers(run: SimulatedRun) -> None:
    """Whoever is on its way from one role to the other may die, or stop, at any moment of it."""
    chance = run.fleet.world.chance
    while not run.trained:
        await asyncio.sleep(0.5)
    while True:
        await asyncio.sleep(0.05)
        owners = {event.slot_id: event.owner for event in run.tracker.of(SlotEvent)}
        for slot_id in run.fleet.ready:
            if owners[slot_id] == "moving" and chance.random() < 0.04:
                worker = run.fleet.workers[slot_id]
                chance.choice((worker.kill, worker.hang))()


def test_workers_lost_at_every_moment_of_a_move(tmp_path: Path) -> None:
    world = World(speeds=Speeds(load=square_wave), seed=5)
    run = simulate(run_config(150), folder(tmp_path), world=world, disturb=end_movers)
    run.check(max_staleness=MAX_STALENESS)
    summary = run.controller.summary()
    assert (summary.num_steps, summary.groups_admitted, len(run.trained)) == (150, 600, 600)
    attempted = {decision.action for decision in run.tracker.of(Decision)}
    assert attempted == {"hold", "to_rollout", "to_train"}
    assert summary.worker_failures >= 5
    num_decided = sum(decision.action != "hold" for decision in run.tracker.of(Decision))
    assert summary.moves_to_rollout + summary.moves_to_train < num_decided, "some were broken off"


def test_the_same_seed_gives_the_same_run(tmp_path: Path) -> None:
    def trained(name: str) -> list[str]:
        run = simulate(
            run_config(30),
            RunFolder.create(tmp_path, name),
            world=World(speeds=Speeds(load=square_wave), seed=1),
            disturb=chaos,
        )
        return run.trained

    assert trained("a") == trained("b")


def test_a_run_that_is_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    config, place = run_config(60), folder(tmp_path)

    async def stop(run: SimulatedRun) -> None:
        await asyncio.sleep(60.0)
        run.controller.request_stop()

    first = simulate(config, place, disturb=stop)
    first.check(max_staleness=MAX_STALENESS)
    done = first.controller.summary()
    assert first.controller.stopped_early
    assert 10 < done.num_steps < 50
    assert done.held_out_after is None
    assert done.groups_admitted > done.groups_trained, "some are live"
    second = simulate(config, place, resume=True)
    second.check(max_staleness=MAX_STALENESS)
    assert not second.controller.stopped_early
    summary = second.controller.summary()
    assert (summary.num_steps, summary.groups_admitted) == (60, 240)
    trained = [*first.trained, *second.trained]
    assert len(set(trained)) == len(trained) == 240, "nothing is lost, and nothing is trained twice"
    assert summary.seconds_total > done.seconds_total


def test_a_run_that_is_over_its_budget_saves_and_ends(tmp_path: Path) -> None:
    budget = BudgetConfig(gpu_hours=6 * 60.0 / 3600, on_passed="stop")  # six slots for a minute
    run = simulate(run_config(1000, cost=CostConfig(budget=budget)), folder(tmp_path))
    run.check(max_staleness=MAX_STALENESS)
    (passed,) = run.tracker.of(BudgetEvent)
    assert 60.0 <= passed.time_s < 70.0
    assert run.controller.stopped_early
    done = run.controller.summary()
    assert done.num_steps > 5
    assert [path.name for path in run.folder.checkpoints.iterdir()] == [f"step_{done.num_steps:06d}"]


def test_a_stop_before_the_workers_are_up_leaves_at_once(tmp_path: Path) -> None:
    async def stop(run: SimulatedRun) -> None:
        await asyncio.sleep(1.0)
        run.controller.request_stop()

    run = simulate(run_config(10), folder(tmp_path), disturb=stop)
    assert run.controller.stopped_early
    assert run.trained == []
    assert run.fleet.workers == {}, "all are ended"


def test_a_stop_breaks_an_evaluation_off(tmp_path: Path) -> None:
    async def stop(run: SimulatedRun) -> None:
        while not run.controller.summary().num_steps:
            await asyncio.sleep(0.5)
        while not any(
            name.startswith("evaluation/5/") for worker in run.living(Role.ROLLOUT) for name in worker.running
        ):
            await asyncio.sleep(0.01)
        run.controller.request_stop()

    config = run_config(10, evaluation=EvaluationConfig(every_steps=5), manager=StaticConfig())
    run = simulate(config, folder(tmp_path), disturb=stop)
    run.check(max_staleness=MAX_STALENESS)
    assert run.controller.stopped_early
    assert run.controller.summary().num_steps == 5
    assert [step for step, metrics in run.tracker.logged if names.HELD_OUT in metrics] == [0]


def test_a_replica_lost_in_an_evaluation_costs_no_answer(tmp_path: Path) -> None:
    async def lose_one(run: SimulatedRun) -> None:
        while not any(worker.running for worker in run.living(Role.ROLLOUT)):
            await asyncio.sleep(0.01)
        next(worker for worker in run.living(Role.ROLLOUT) if worker.running).kill()

    run = simulate(run_config(1, manager=StaticConfig()), folder(tmp_path), disturb=lose_one)
    assert run.controller.summary().worker_failures == 1
    before = next(metrics for step, metrics in run.tracker.logged if step == 0)
    assert (before[names.HELD_OUT_FAILED], names.HELD_OUT in before) == (0, True)


def test_a_run_in_which_nothing_moves_ends_with_who_owes_what(tmp_path: Path) -> None:
    async def hang_the_reward(run: SimulatedRun) -> None:
        await asyncio.sleep(60.0)
        run.scorer.hangs = True

    with pytest.raises(
        DeadlineExceededError, match=r"the batch of step .* nothing moved .* groups: 0 pending, \d+ running, 0"
    ):
        simulate(run_config(100), folder(tmp_path), disturb=hang_the_reward)


def test_one_loss_too_many_ends_the_run_with_its_name(tmp_path: Path) -> None:
    config = run_config(1000, pool=PoolConfig(max_worker_failures=3))
    with pytest.raises(WorkerFailedError, match=r"4 workers were lost, more than pool.max_worker_failures=3; the last"):
        simulate(config, folder(tmp_path), disturb=chaos)


def test_trainers_that_are_all_lost_end_the_run(tmp_path: Path) -> None:
    async def lose_all(run: SimulatedRun) -> None:
        await asyncio.sleep(60.0)
        for worker in run.living(Role.TRAIN):
            worker.kill()

    with pytest.raises(WorkerFailedError, match="no trainer is left that holds the state"):
        simulate(run_config(100, manager=StaticConfig()), folder(tmp_path), disturb=lose_all)


def test_it_is_built_without_ray() -> None:
    """Whoever simulates hands in workers of his own."""
    code = "import sys; sys.modules['ray'] = None; import rlserve.controller.build"
    subprocess.run([sys.executable, "-c", code], check=True)
