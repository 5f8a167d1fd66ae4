"""Notices in whole runs on virtual time: emptied in time, lost after it, and a stop where too little stays."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from simulated_run import Disturb, SimulatedRun, make_config, simulate
from simulated_world import Speeds, World

from rlserve.config.tree import RunConfig
from rlserve.controller.checkpoint import newest_checkpoint
from rlserve.engine.config import EngineConfig
from rlserve.manager.config import StaticConfig
from rlserve.manager.roles import Role
from rlserve.pool.config import PoolConfig
from rlserve.pool.notices.base import Notice
from rlserve.rollout.config import RolloutConfig
from rlserve.tracking.events import FailureEvent, SlotEvent
from rlserve.tracking.run_folder import RunFolder

NUM_STEPS = 30


def run_config(**pool: Any) -> RunConfig:
    return make_config(
        num_steps=NUM_STEPS,
        rollout=RolloutConfig(
            prompts_per_step=4, samples_per_prompt=2, max_staleness=1, engine=EngineConfig(max_num_sequences=8)
        ),
        pool=PoolConfig(**{"max_worker_failures": 0} | pool),
        manager=StaticConfig(),
    )


def whole_run(tmp_path: Path, disturb: Disturb, *, num_slots: int = 6, **pool: Any) -> SimulatedRun:
    async def once_it_trains(run: SimulatedRun) -> None:
        while not run.trained:
            await asyncio.sleep(0.5)
        await disturb(run)

    world = World(speeds=Speeds(step_s=12.0))
    folder = RunFolder.create(tmp_path, "run")
    run = simulate(run_config(**pool), folder, world=world, num_slots=num_slots, disturb=once_it_trains)
    run.check(max_staleness=1)
    return run


def owners(run: SimulatedRun) -> dict[str, str]:
    return {event.slot_id: event.owner for event in run.tracker.of(SlotEvent)}


async def gone(run: SimulatedRun, *slot_ids: str) -> float:
    """When they were, in seconds from now."""
    begun_s = asyncio.get_running_loop().time()
    while {owners(run)[slot_id] for slot_id in slot_ids} != {"gone"}:
        await asyncio.sleep(0.1)
    return asyncio.get_running_loop().time() - begun_s


def test_slots_named_in_the_file_or_told_by_their_workers_are_emptied_without_a_failure(tmp_path: Path) -> None:
    async def notices(run: SimulatedRun) -> None:
        (run.folder.path / "notices").write_text("cpu/5 60\ncpu/9 60\n")
        run.fleet.workers["cpu/0"].notice = Notice(reason="its process was sent SIGTERM")
        assert await gone(run, "cpu/0", "cpu/5") < 60.0

    run = whole_run(tmp_path, notices)
    summary = run.controller.summary()
    assert (summary.num_steps, summary.worker_failures, run.tracker.of(FailureEvent)) == (NUM_STEPS, 0, [])
    assert sorted(owners(run).values()) == ["gone", "gone", "rollout", "rollout", "train", "train"]


@pytest.mark.parametrize("slot_id", ["cpu/0", "cpu/5"], ids=["a trainer", "a replica"])
def test_what_is_not_empty_in_time_is_lost_and_the_run_goes_on(tmp_path: Path, slot_id: str) -> None:
    async def notices(run: SimulatedRun) -> None:
        run.fleet.workers[slot_id].hang()  # found by nobody else: see health_timeout_s
        (run.folder.path / "notices").write_text(f"{slot_id} 20\n")
        assert 19.0 < await gone(run, slot_id) < 40.0

    run = whole_run(tmp_path, notices, health_timeout_s=1000.0, switch_timeout_s=1000.0)
    summary = run.controller.summary()
    assert (summary.num_steps, summary.worker_failures) == (NUM_STEPS, 0)
    ((failure),) = run.tracker.of(FailureEvent)
    assert failure.slot_id == slot_id
    assert f"it was not empty 20 s after a notice: notices names {slot_id}" in failure.reason


def test_the_last_of_a_role_is_replaced_before_it_leaves(tmp_path: Path) -> None:
    async def notices(run: SimulatedRun) -> None:
        (run.folder.path / "notices").write_text("cpu/3 60\ncpu/4 60\ncpu/5 60\n")
        assert await gone(run, "cpu/3", "cpu/4", "cpu/5") < 60.0

    run = whole_run(tmp_path, notices)
    assert run.controller.summary().num_steps == NUM_STEPS
    assert run.tracker.of(FailureEvent) == []
    assert len(run.living(Role.ROLLOUT)) == 0, "the run is over"
    assert {owners(run)[f"cpu/{number}"] for number in range(3)} == {"train", "rollout"}


@pytest.mark.parametrize(("num_told", "begun_s"), [(2, 0.0), (1, 50.0)], ids=["all", "all but one"])
def test_where_fewer_than_two_stay_the_run_stops_and_saves_in_time(
    tmp_path: Path, num_told: int, begun_s: float
) -> None:
    """As where a scheduler signals all processes of a job at once."""
    times: list[float] = []

    async def notices(run: SimulatedRun) -> None:
        times.append(asyncio.get_running_loop().time())
        for number in range(num_told):
            run.fleet.workers[f"cpu/{number}"].notice = Notice(reason="its process was sent SIGTERM", grace_s=100.0)

    run = whole_run(tmp_path, notices, num_slots=2)
    assert run.controller.stopped_early
    summary = run.controller.summary()
    assert 0 < summary.num_steps < NUM_STEPS
    assert newest_checkpoint(run.folder.checkpoints).name == f"step_{summary.num_steps:06d}"
    assert begun_s <= summary.seconds_total - times[0] < 100.0
    assert run.tracker.of(FailureEvent) == []
