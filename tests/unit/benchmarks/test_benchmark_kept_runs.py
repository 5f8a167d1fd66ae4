"""Runs that a benchmark keeps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kept_runs import KeptRuns, kept_runs
from simulation import gangs

from rlserve.manager.config import ManagerConfig, QueueThresholdConfig, RateMatchingConfig, StaticConfig
from rlserve.rollout.workload.courses import Steady
from rlserve.rollout.workload.lengths import LogNormalLengths
from rlserve.rollout.workload.workload import Workload
from rlserve.roofline.costs import Costs
from rlserve.roofline.model_shapes import model_shape
from rlserve.simulate.costs.roofline import RooflineCosts
from rlserve.simulate.scenario import Scenario
from rlserve.simulate.simulation import SimulatedRun
from rlserve.simulate.study import Job

EAGER = QueueThresholdConfig(interval_s=1.0, cooldown_s=3.0, queue_high=4, queue_low=2)


def job(manager: ManagerConfig, seed: int = 0) -> Job:
    pool = Scenario(
        gangs=gangs(H100=3),
        workload=Workload(lengths=LogNormalLengths(median_tokens=Steady(2000.0), sigma=1.0)),
        max_tokens=2000,
        costs=RooflineCosts(roofline=Costs(shape=model_shape("8B"))),
        prompts_per_step=16,
        num_initial_rollout=1,
        duration_s=100.0,
    )
    return Job(scenario=pool, manager=manager, seed=seed)


def without_time(run: SimulatedRun) -> SimulatedRun:
    return replace(run, host_s=0.0)


def test_a_kept_run_is_read_and_is_the_same(tmp_path: Path) -> None:
    kept = kept_runs(tmp_path)
    first, again = kept(job(EAGER)), kept(job(EAGER))
    assert first.moves
    assert again == first
    assert without_time(KeptRuns(tmp_path / "absent", "")(job(RateMatchingConfig()))).num_steps > 0  # not kept


def test_another_seed_scenario_policy_or_source_is_another_run(tmp_path: Path) -> None:
    kept = kept_runs(tmp_path)
    kept(job(StaticConfig()))
    kept(job(StaticConfig(), seed=1))
    kept(job(StaticConfig(interval_s=7.0)))
    kept(replace(job(StaticConfig()), scenario=replace(job(StaticConfig()).scenario, max_staleness=2)))
    replace(kept, sources="others")(job(StaticConfig()))
    assert len(list(tmp_path.iterdir())) == 5
