"""Moves by hand in whole runs on virtual time, through the same files as ``rlserve move``."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from simulated_run import SimulatedRun, ask, make_config, simulate
from simulated_world import Speeds, World

from rlserve.config.tree import RunConfig
from rlserve.engine.config import EngineConfig
from rlserve.manager.config import QueueThresholdConfig
from rlserve.pool.config import PoolConfig
from rlserve.rollout.config import RolloutConfig
from rlserve.tracking.events import Decision, SlotEvent
from rlserve.tracking.run_folder import RunFolder

NUM_STEPS = 60
HOLD_S = 40.0


def run_config() -> RunConfig:
    """A policy that always wants more trainers: the queue is never as long as ``queue_low``."""
    return make_config(
        num_steps=NUM_STEPS,
        rollout=RolloutConfig(
            prompts_per_step=4, samples_per_prompt=2, max_staleness=2, engine=EngineConfig(max_num_sequences=8)
        ),
        pool=PoolConfig(move_hold_s=HOLD_S),
        manager=QueueThresholdConfig(queue_high=200, queue_low=100, cooldown_s=2.0),
    )


def roles(run: SimulatedRun) -> dict[str, str]:
    return {event.slot_id: event.owner for event in run.tracker.of(SlotEvent)}


async def until_the_policy_has_moved_all_that_it_may(run: SimulatedRun) -> None:
    while list(roles(run).values()).count("rollout") > 2:
        await asyncio.sleep(0.5)


def test_a_move_by_hand_holds_for_a_while_and_then_the_policy_decides_again(tmp_path: Path) -> None:
    """Both ways and again, unknown, last of its role, and with a request in the middle of another move."""
    answers: list[dict[str, Any]] = []
    seen: dict[str, Any] = {}

    async def user(run: SimulatedRun) -> None:
        while not run.trained:
            await asyncio.sleep(0.5)
        await until_the_policy_has_moved_all_that_it_may(run)
        assert sorted(roles(run).values()).count("rollout") == 2
        answers.append(await ask(run, "move", "cpu/0", "rollout"))
        answers.append(await ask(run, "move", "cpu/0", "rollout"))
        both = await asyncio.gather(ask(run, "move", "cpu/1", "rollout"), ask(run, "move", "cpu/2", "rollout"))
        answers.extend(both)
        answers.append(await ask(run, "move", "nobody", "rollout"))
        seen["by hand"] = dict(roles(run))
        seen["listed"] = (await ask(run, "show"))["gangs"]
        await asyncio.sleep(HOLD_S - 10.0)
        seen["held"] = dict(roles(run))
        await asyncio.sleep(20.0)
        await until_the_policy_has_moved_all_that_it_may(run)
        seen["over"] = True

    run = simulate(
        run_config(), RunFolder.create(tmp_path, "run"), world=World(speeds=Speeds(step_s=12.0)), disturb=user
    )
    run.check(max_staleness=2)
    assert [answer["outcome"] for answer in answers] == ["done"] * 4 + ["refused"]
    assert "cpu/0 has the rollout role after" in answers[0]["message"]
    assert answers[1]["message"] == "cpu/0 has the rollout role already"
    assert answers[4]["message"].startswith("there is no gang 'nobody'; the run has cpu/0, cpu/1")
    assert {seen["by hand"][f"cpu/{number}"] for number in range(3)} == {"rollout"}
    assert seen["held"] == seen["by hand"], "the policy leaves it alone"
    assert seen["over"]
    held = {gang["id"] for gang in seen["listed"] if gang["held_s"]}
    assert held == {"cpu/0", "cpu/1", "cpu/2"}
    decisions = run.tracker.of(Decision)
    by_hand = [(decision.action, decision.slot_id) for decision in decisions if decision.reason == "by hand"]
    assert by_hand == [("to_rollout", f"cpu/{number}") for number in range(3)]
    assert any("moved by hand, and held for another" in decision.reason for decision in decisions)


def test_released_it_is_the_policys_again_at_once_and_the_last_of_a_role_stays(tmp_path: Path) -> None:
    answers: list[dict[str, Any]] = []

    async def user(run: SimulatedRun) -> None:
        while not run.trained:
            await asyncio.sleep(0.5)
        await until_the_policy_has_moved_all_that_it_may(run)
        rolling_out = [slot_id for slot_id, owner in roles(run).items() if owner == "rollout"]
        answers.extend([await ask(run, "move", slot_id, "train") for slot_id in rolling_out])
        answers.append(await ask(run, "release", rolling_out[0]))
        answers.append(await ask(run, "release"))
        begun_s = asyncio.get_running_loop().time()
        while list(roles(run).values()).count("rollout") < 2:  # the policy's smallest share
            await asyncio.sleep(0.5)
        assert asyncio.get_running_loop().time() - begun_s < HOLD_S / 2

    world = World(speeds=Speeds(step_s=12.0))
    config = run_config()
    run = simulate(config, RunFolder.create(tmp_path, "run"), world=world, disturb=user)
    run.check(max_staleness=2)
    moved, last, released, nothing = answers
    assert (moved["outcome"], last["outcome"]) == ("done", "refused")
    assert "is the last that rolls out, and a run needs one" in last["message"]
    assert "the policy decides about" in released["message"]
    assert nothing["message"] == "nothing was held"
