"""The runs of a sweep as tasks of one job of Slurm."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from golden_files import check_golden
from hypothesis import given
from hypothesis import strategies as st
from plans import plan_of

from rlserve.errors import UserError
from rlserve.launch.schedulers.arrays import JobArray
from rlserve.launch.schedulers.plan import JobPlan
from rlserve.launch.schedulers.slurm.scheduler import SlurmScheduler

H100 = "pool.slots=[{type: H100, count: 8}]"


def array_of(*settings: tuple[str, ...]) -> JobArray:
    """Runs ``hello-1``, ``hello-2`` and so on, with these settings."""

    def plan(number: int, more: tuple[str, ...]) -> JobPlan:
        name = f"hello-{number}"
        return replace(plan_of(*more), name=name, folder=Path("/data/runs") / name, sweep="hello")

    return JobArray(name="hello", plans={number: plan(number, each) for number, each in enumerate(settings, 1)})


def test_what_is_rendered_has_been_read() -> None:
    fixed = (H100, "launch.slurm.partition=gpu", "launch.env_file=/home/me/.rlserve.env", "launch.slurm.max_running=2")
    array = array_of(*((*fixed, f"seed={seed}") for seed in range(3)))
    assert SlurmScheduler().why_apart(array) is None
    script = SlurmScheduler().render_array(array)["job.sbatch"]
    check_golden("slurm_array.sbatch", script)
    checked = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_each_task_has_the_configuration_of_its_own_run() -> None:
    array = array_of(("seed=3",), ("seed=4",))
    for seed, plan in zip((3, 4), array.plans.values(), strict=True):
        assert f"\nseed: {seed}\n" in SlurmScheduler().render_task(plan)["run.yaml"]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ([("pool=h100_h200", "seed=1"), ("pool=h100_h200", "seed=2")], "several components"),
        ([(H100,), ("pool.slots=[{type: H100, count: 4}]",)], "different machines"),
        ([(H100, "launch.slurm.partition=a"), (H100, "launch.slurm.partition=b")], "what Slurm is told"),
    ],
)
def test_runs_that_do_not_fit_one_job_are_jobs_of_their_own(settings: list[tuple[str, ...]], reason: str) -> None:
    found = SlurmScheduler().why_apart(array_of(*settings))
    assert found is not None
    assert reason in found


def test_a_template_of_the_users_may_know_nothing_of_arrays(tmp_path: Path) -> None:
    (tmp_path / "job.sbatch.j2").write_text("#!/bin/bash\n# {{ plan.name }}\n")
    found = SlurmScheduler().why_apart(
        array_of(*((H100, f"launch.templates={tmp_path}", f"seed={n}") for n in range(2)))
    )
    assert found == "job.sbatch of launch.templates has no #SBATCH --array="


def test_an_array_needs_what_a_job_does() -> None:
    with pytest.raises(UserError, match=r"launch\.slurm\.container=apptainer with launch\.image=None"):
        SlurmScheduler().why_apart(array_of((H100, "launch.slurm.container=apptainer")))


@given(st.sets(st.integers(1, 60), min_size=1))
def test_the_numbers_of_tasks_are_written_as_slurm_reads_them(numbers: set[int]) -> None:
    plan = plan_of()
    read: list[int] = []
    for part in JobArray(name="hello", plans=dict.fromkeys(numbers, plan)).tasks.split(","):
        first, _, last = part.partition("-")
        read += range(int(first), int(last or first) + 1)
    assert read == sorted(numbers)
