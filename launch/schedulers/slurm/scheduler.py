"""A run as a job of Slurm: a Ray cluster under ``srun``, of one component for each group of slots.

::

    sbatch ──► PENDING ──► RUNNING ──TERM, USR1──► the run saves, exit code ≥ 128 ──scontrol requeue──► PENDING …
                              └── rlserve cancel: the run saves, and the job ends
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rlserve.errors import UserError
from rlserve.launch.schedulers.arrays import ArrayScheduler, JobArray
from rlserve.launch.schedulers.base import JobState
from rlserve.launch.schedulers.growth import refuse_growth
from rlserve.launch.schedulers.plan import JobPlan
from rlserve.launch.schedulers.programs import ask, pass_on
from rlserve.launch.schedulers.ray_token import TOKEN_FILE, write_ray_token
from rlserve.launch.schedulers.templates import render_templates
from rlserve.tracking.job_record import JobRecord

_TEMPLATES = Path(__file__).parent
JOB_FILE = "job.sbatch"
JOB_ARRAY = "#SBATCH --array="
CANCELLED_FILE = "cancelled"
"""Tells a job whose run was interrupted not to queue up again."""
_WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SUSPENDED", "RESIZING")
_RUNNING = ("RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "STOPPED")


class SlurmScheduler(ArrayScheduler):
    """By Slurm's own programs, on a machine that has them."""

    name = "slurm"

    def render(self, plan: JobPlan) -> Mapping[str, str]:
        _check(plan)
        return {**render_templates(_TEMPLATES, plan, array=None), "run.yaml": plan.run_file}

    def why_apart(self, array: JobArray) -> str | None:
        first, *others = array.plans.values()
        if len(first.groups) > 1:
            return "Slurm has no arrays of jobs with several components"
        if JOB_ARRAY not in self._script(array, first):
            return f"{JOB_FILE} of launch.templates has no {JOB_ARRAY}"
        if any(self._script(array, plan) != self._script(array, first) for plan in others):
            return "they ask for different machines, or differ in what Slurm is told"
        return None

    def render_array(self, array: JobArray) -> Mapping[str, str]:
        return {JOB_FILE: self._script(array, next(iter(array.plans.values())))}

    def _script(self, array: JobArray, plan: JobPlan) -> str:
        """The job as it would be if all runs were like this one."""
        _check(plan)
        return render_templates(_TEMPLATES, replace(plan, name=array.name), array=array)[JOB_FILE]

    def render_task(self, plan: JobPlan) -> Mapping[str, str]:
        return {"run.yaml": plan.run_file}

    def submit_array_command(self, folder: Path) -> Sequence[str]:
        return ("sbatch", "--parsable", str(folder / JOB_FILE))

    def submit_array(self, array: JobArray, folder: Path) -> Mapping[int, JobRecord]:
        places = {number: plan.folder / "job" for number, plan in array.plans.items()}
        for place in places.values():
            _make_ready(place)
        job_id = ask(*self.submit_array_command(folder)).strip().partition(";")[0]
        return {
            number: JobRecord(scheduler=self.name, id=f"{job_id}_{number}", place=str(place))
            for number, place in places.items()
        }

    def submit_command(self, plan: JobPlan, folder: Path) -> Sequence[str]:
        return ("sbatch", "--parsable", str(folder / JOB_FILE))

    def submit(self, plan: JobPlan, folder: Path) -> JobRecord:
        _make_ready(folder)
        job_id = ask(*self.submit_command(plan, folder)).strip().partition(";")[0]
        return JobRecord(scheduler=self.name, id=job_id, place=str(folder))

    def state(self, job: JobRecord) -> JobState | None:
        try:
            found = ask("scontrol", "--oneliner", "show", "job", job.id)
        except UserError as error:
            if "Invalid job id" in str(error):
                return None
            raise
        return read_state(found)

    def print_logs(self, job: JobRecord, *, follow: bool) -> int:
        log = Path(job.place) / f"slurm-{job.id}.log"
        if not log.exists():
            raise UserError(f"job {job.id} has written nothing yet: {log}")
        return pass_on(["tail", "-n", "+1", *(["-F"] if follow else []), str(log)])

    def cancel(self, job: JobRecord) -> None:
        (Path(job.place) / CANCELLED_FILE).touch()
        state = self.state(job)
        # By itself scancel leaves a run no more than Slurm's KillWait to save.
        is_running = state is not None and state.stage == "running"
        ask("scancel", *(["--signal=USR1"] if is_running else []), job.id)


def _check(plan: JobPlan) -> None:
    refuse_growth(plan.config, "Slurm")
    slurm = plan.launch.slurm
    if (slurm.container == "none") != (plan.launch.image is None):
        raise UserError(
            f"launch.slurm.container={slurm.container} with launch.image={plan.launch.image}: name both, or neither"
        )
    if any(character.isspace() for character in str(plan.folder)):
        raise UserError(f"Slurm takes no folder with blanks in its name: {plan.folder}; choose another output_dir")


def _make_ready(folder: Path) -> None:
    """A folder of a job's files, for the job to find there what only it may have."""
    (folder / CANCELLED_FILE).unlink(missing_ok=True)
    write_ray_token(folder / TOKEN_FILE)


def read_state(found: str) -> JobState:
    """From a job, a line for each component, as ``scontrol --oneliner show job`` prints it."""
    first = found.splitlines()[0] if found.strip() else ""
    fields = dict(re.findall(r"(\w+)=(\S*)", first))
    state, reason = fields.get("JobState", "UNKNOWN"), fields.get("Reason", "None")
    restarts = int(fields.get("Restarts", "0"))
    detail = state if reason == "None" else f"{state} ({reason})"
    detail += f", queued again {restarts}×" if restarts else ""
    stage = "waiting" if state in _WAITING else "running" if state in _RUNNING else "ended"
    return JobState(stage=stage, detail=detail)  # type: ignore[arg-type]
