"""Whole runs on virtual time with the policy of the default: nodes join and leave, and a load that tilts."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from simulated_run import SimulatedRun, make_config, simulate
from simulated_world import Speeds, World

from rlserve.config.tree import RunConfig
from rlserve.engine.config import EngineConfig
from rlserve.manager.config import RateMatchingConfig
from rlserve.pool.config import PoolConfig
from rlserve.pool.gangs import Node
from rlserve.rollout.config import RolloutConfig
from rlserve.tracking.events import Decision, MoveEvent, SlotEvent
from rlserve.tracking.run_folder import RunFolder


def run_config(num_steps: int) -> RunConfig:
    return make_config(
        num_steps=num_steps,
        rollout=RolloutConfig(
            prompts_per_step=8, samples_per_prompt=4, max_staleness=1, engine=EngineConfig(max_num_sequences=16)
        ),
        pool=PoolConfig(slots="auto"),
        manager=RateMatchingConfig(cooldown_s=20.0),
    )


def node(name: str, num_slots: int, *, is_draining: bool = False) -> Node:
    return Node(id=name, name=name, counts={"cpu": num_slots}, is_draining=is_draining)


def owners(run: SimulatedRun) -> dict[str, str]:
    """The last owner of each slot."""
    return {event.slot_id: event.owner for event in run.tracker.of(SlotEvent)}


def test_gangs_of_a_node_that_joins_get_roles_and_those_of_one_that_leaves_are_emptied(tmp_path: Path) -> None:
    cluster = [node("first", 4)]
    seen: dict[str, Counter[str]] = {}

    async def come_and_go(run: SimulatedRun) -> None:
        while run.controller.summary().num_steps < 30:
            await asyncio.sleep(1.0)
        cluster.append(node("second", 2))
        while run.controller.summary().num_steps < 80:
            await asyncio.sleep(1.0)
        seen["joined"] = Counter(owner for slot_id, owner in owners(run).items() if slot_id in ("cpu/4", "cpu/5"))
        cluster[1] = node("second", 2, is_draining=True)

    place = RunFolder.create(tmp_path, "nodes")
    run = simulate(run_config(130), place, num_slots=4, cluster=cluster, disturb=come_and_go)
    run.check(max_staleness=1)
    assert sum(seen["joined"][role] for role in ("train", "rollout")) == 2, "both are used"
    assert {slot_id: owner for slot_id, owner in owners(run).items() if owner == "gone"} == {
        "cpu/4": "gone",
        "cpu/5": "gone",
    }
    assert run.controller.summary().worker_failures == 0
    assert run.controller.summary().num_steps == 130


@pytest.mark.parametrize(("token_s", "step_s", "side"), [(0.2, 4.0, "rollout"), (0.02, 40.0, "train")])
def test_the_side_that_is_behind_gets_slots_and_what_they_brought_is_recorded(
    tmp_path: Path, token_s: float, step_s: float, side: str
) -> None:
    world = World(speeds=Speeds(token_s=token_s, step_s=step_s))
    run = simulate(run_config(60), RunFolder.create(tmp_path, "tilted"), world=world, num_slots=6)
    run.check(max_staleness=1)
    decisions = run.tracker.of(Decision)
    assert all(move.rate_after > move.rate_now > 0.0 for move in decisions if move.action != "hold")
    last = decisions[-1]
    assert (last.num_train, last.num_rollout) in ({"rollout": [(2, 4), (1, 5)], "train": [(4, 2), (5, 1)]}[side])
    made = [move.slot_id for move in run.tracker.of(MoveEvent)]
    assert made == [move.slot_id for move in decisions if move.action != "hold"]
