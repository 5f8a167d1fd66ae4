"""What a run becomes for Slurm, and what Slurm's answers mean."""

from __future__ import annotations

import re
import subprocess

import pytest
from golden_files import check_golden
from plans import plan_of

from rlserve.errors import UserError
from rlserve.launch.schedulers.base import JobState
from rlserve.launch.schedulers.slurm.scheduler import SlurmScheduler, read_state

JOBS = {
    "slurm_two_types.sbatch": (
        "pool=h100_h200",
        "launch.slurm.partition=gpu",
        "launch.slurm.account=lab",
        "launch.slurm.time_limit=2-00:00:00",
        "launch.env_file=/home/me/.rlserve.env",
    ),
    "slurm_two_nodes_in_containers.sbatch": (
        "pool.slots=[{type: H100, count: 16}]",
        "launch.image=/images/rlserve.sif",
        "launch.slurm.container=apptainer",
        "launch.slurm.options=[--exclusive]",
    ),
}


@pytest.mark.parametrize("name", JOBS)
def test_what_is_rendered_has_been_read(name: str) -> None:
    script = SlurmScheduler().render(plan_of(*JOBS[name]))["job.sbatch"]
    check_golden(name, script)


@pytest.mark.parametrize(
    ("pool", "container"),
    [("two", "none"), ("uniform", "enroot"), ("h100_h200", "apptainer"), ("h100_h200", "enroot")],
)
def test_every_script_is_one_that_bash_can_read(pool: str, container: str) -> None:
    image = () if container == "none" else ("""launch.image="/images/it's.sif\"""",)
    plan = plan_of(f"pool={pool}", f"launch.slurm.container={container}", *image)
    script = SlurmScheduler().render(plan)["job.sbatch"]
    checked = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    directives = [line for line in script.splitlines() if line.startswith("#SBATCH")]
    last = script.splitlines().index(directives[-1])
    assert all(line.startswith("#") for line in script.splitlines()[:last]), "Slurm reads up to the first command"
    assert directives.count("#SBATCH hetjob") == len(plan.groups) - 1


def test_a_container_without_an_image_is_refused() -> None:
    with pytest.raises(UserError, match=r"launch\.slurm\.container=apptainer with launch\.image=None"):
        SlurmScheduler().render(plan_of("launch.slurm.container=apptainer"))


def test_a_secret_is_in_no_file() -> None:
    files = SlurmScheduler().render(plan_of("launch.env_file=/home/me/.rlserve.env"))
    assert "source /home/me/.rlserve.env" in files["job.sbatch"]
    assert not re.search(r"(KEY|TOKEN)=", "".join(files.values()))


@pytest.mark.parametrize(
    ("found", "state"),
    [
        ("JobId=7 JobState=RUNNING Reason=None Restarts=0", JobState(stage="running", detail="RUNNING")),
        (
            "JobId=7 JobState=PENDING Reason=BeginTime Restarts=1\nJobId=8 JobState=PENDING",
            JobState(stage="waiting", detail="PENDING (BeginTime), queued again 1×"),
        ),
        ("JobId=7 JobState=CANCELLED Reason=None", JobState(stage="ended", detail="CANCELLED")),
        ("JobId=7 JobState=FAILED Reason=NonZeroExitCode", JobState(stage="ended", detail="FAILED (NonZeroExitCode)")),
    ],
)
def test_what_slurm_says_of_a_job(found: str, state: JobState) -> None:
    assert read_state(found) == state
