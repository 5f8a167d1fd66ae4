"""Submitting a run, and taking a submitted run up again.

::

    configuration ──► plan ──► files ──► RUN/config.yaml, RUN/job/ ──► the scheduler ──► RUN/job.json
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from rlserve.config import LoadedConfig, RunConfig, to_yaml
from rlserve.config.resume import load_run
from rlserve.errors import UserError
from rlserve.launch.schedulers.base import JobState, Scheduler
from rlserve.launch.schedulers.factory import create_scheduler
from rlserve.launch.schedulers.plan import JobPlan
from rlserve.tracking.job_record import JobRecord, read_job, write_job
from rlserve.tracking.run_folder import RunFolder, default_run_name

ON_CLUSTER = ("launch.kind=cluster",)
"""What every configuration is loaded with: it is another machine that must have the slots."""
WAIT_S = 900.0
"""How long a job's cluster may take to be complete, where ``launch.wait_s`` does not say."""


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A run as a job that nobody has submitted yet."""

    scheduler: Scheduler
    plan: JobPlan
    files: Mapping[str, str]


def render(loaded: LoadedConfig, scheduler_name: str, *, sweep: str | None = None) -> Rendered:
    """What a run, of a sweep or not, becomes as a job. Writes nothing.

    Raises:
        UserError: the configuration lacks something that the scheduler must be told.
    """
    config = loaded.config
    name = config.name or default_run_name(loaded.source.stem, datetime.now())
    return _render(replace(config, name=name), create_scheduler(scheduler_name), sweep)


def submit(rendered: Rendered) -> tuple[RunFolder, JobRecord]:
    """Make the run's folder, write the job's files into it, and submit them.

    Raises:
        UserError: the name is taken, or the scheduler refuses; then the folder is gone again.
    """
    plan = rendered.plan
    folder = RunFolder.create(plan.folder.parent, plan.name)
    try:
        folder.write_config(to_yaml(plan.config))
        job = submit_into(folder, rendered)
    except UserError:
        shutil.rmtree(folder.path)
        raise
    folder.make_latest()
    return folder, job


def resubmit(folder: RunFolder, job: JobRecord, overrides: Sequence[str]) -> JobRecord:
    """Submit a run anew: it goes on where it stopped. Its files are rendered anew, with what may change.

    Raises:
        UserError: its job has not ended, or as for :func:`submit`.
    """
    rendered = render_again(folder, job, overrides)
    state = state_of(rendered, job)
    if state is not None and state.stage != "ended":
        raise UserError(f"{folder.name} has a job already, {job.scheduler} {job.id}: {state.detail}")
    folder.write_config(to_yaml(rendered.plan.config))
    return submit_into(folder, rendered)


def render_again(folder: RunFolder, job: JobRecord, overrides: Sequence[str]) -> Rendered:
    """A run that was submitted before as a job once more. Writes nothing.

    Raises:
        UserError: as for :func:`render`.
    """
    config = load_run(folder.path, [*overrides, *ON_CLUSTER]).config
    return _render(config, create_scheduler(job.scheduler), job.sweep)


def state_of(rendered: Rendered, job: JobRecord) -> JobState | None:
    """How the job before stands; None where its scheduler knows it no longer, or where its cluster does not answer and
    the run now is for another one.

    Raises:
        UserError: the scheduler cannot be reached.
    """
    try:
        return rendered.scheduler.state(job)
    except UserError:
        if not rendered.scheduler.is_elsewhere(rendered.plan, job):
            raise
        return None  # a run that lives all the same keeps its folder to itself


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    """Write the files of a job."""
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


def submit_into(folder: RunFolder, rendered: Rendered) -> JobRecord:
    """Write the files of a job into the folder of its run, and submit them.

    Raises:
        UserError: the scheduler refuses.
    """
    write_files(folder.job, rendered.files)
    job = replace(rendered.scheduler.submit(rendered.plan, folder.job), sweep=rendered.plan.sweep)
    write_job(folder.job_file, job)
    return job


def job_of(folder: RunFolder) -> tuple[Scheduler, JobRecord] | None:
    """The newest job of a run and its scheduler; None where it was not submitted."""
    job = read_job(folder.job_file)
    return None if job is None else (create_scheduler(job.scheduler), job)


def _render(config: RunConfig, scheduler: Scheduler, sweep: str | None) -> Rendered:
    launch = config.launch
    config = replace(config, launch=replace(launch, address=None, wait_s=launch.wait_s or WAIT_S))
    assert config.name is not None
    plan = JobPlan(
        name=config.name,
        folder=Path(config.output_dir) / config.name,
        python=sys.executable,
        config=config,
        run_file=to_yaml(config),
        sweep=sweep,
    )
    return Rendered(scheduler=scheduler, plan=plan, files=scheduler.render(plan))
