"""A run as a job of Slurm: a Ray cluster under ``srun``, of one component for each group of slots.

::

    sbatch ──► PENDING ──► RUNNING ──TERM, USR1──► the run saves, exit code ≥ 128 ──scontrol requeue──► PENDING …
                              └── rlserve cancel: the run saves, and the job ends
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlserve.errors import UserError
from rlserve.launch.schedulers.base import JobState, Scheduler
from rlserve.launch.schedulers.plan import JobPlan
from rlserve.launch.schedulers.programs import ask, pass_on
from rlserve.launch.schedulers.ray_token import TOKEN_FILE, write_ray_token
from rlserve.launch.schedulers.templates import render_templates
from rlserve.tracking.job_record import JobRecord

JOB_FILE = "job.sbatch"
CANCELLED_FILE = "cancelled"
"""Tells a job whose run was interrupted not to queue up again."""
_WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SUSPENDED", "RESIZING")
_RUNNING = ("RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "STOPPED")


class SlurmScheduler(Scheduler):
    """By Slurm's own programs, on a machine that has them."""

    name = "slurm"

    def render(self, plan: JobPlan) -> Mapping[str, str]:
        slurm = plan.launch.slurm
        if (slurm.container == "none") != (plan.launch.image is None):
            raise UserError(
                f"launch.slurm.container={slurm.container} with launch.image={plan.launch.image}: name both, or neither"
            )
        if any(character.isspace() for character in str(plan.folder)):
            raise UserError(f"Slurm takes no folder with blanks in its name: {plan.folder}; choose another output_dir")
        return {**render_templates(Path(__file__).parent, plan), "run.yaml": plan.run_file}

    def submit_command(self, plan: JobPlan, folder: Path) -> Sequence[str]:
        return ("sbatch", "--parsable", str(folder / JOB_FILE))

    def submit(self, plan: JobPlan, folder: Path) -> JobRecord:
        (folder / CANCELLED_FILE).unlink(missing_ok=True)
        write_ray_token(folder / TOKEN_FILE)
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
