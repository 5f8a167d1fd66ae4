"""Submitting the runs of a sweep, and taking them up again: as one job where the scheduler has arrays of jobs.

::

    configurations ──► plans ──► one job with a task for each run    (Slurm, if all ask for the same machines)
                             └─► a job for each run                  (everything else)

Either way each run has its folder and its ``job.json``, so that it can be asked, cancelled and resumed like any other.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rlserve.config import LoadedConfig, to_yaml
from rlserve.errors import UserError
from rlserve.launch.schedulers.arrays import ArrayScheduler, JobArray
from rlserve.launch.schedulers.submission import (
    Rendered,
    job_of,
    render,
    render_again,
    state_of,
    submit_into,
    write_files,
)
from rlserve.tracking.job_record import JobRecord, write_job
from rlserve.tracking.run_folder import RunFolder
from rlserve.tracking.run_state import read_run_state
from rlserve.tracking.sweep_record import Sweep

RUN_FILE = "run.yaml"


@dataclass(frozen=True, kw_only=True)
class RenderedSweep:
    """The runs of a sweep as jobs that nobody has submitted yet."""

    runs: Mapping[int, Rendered]
    """By number."""
    array: JobArray | None
    """All of them as one job; None where each is a job of its own."""
    remark: str | None
    """Why each is a job of its own, where the scheduler has arrays of jobs."""

    def files(self, folder: Path) -> Iterator[tuple[Path, str]]:
        """All files of all jobs, but the runs' own configurations; ``folder`` is that of the sweep."""
        if self.array is not None:
            for name, text in self._array_scheduler.render_array(self.array).items():
                yield folder / name, text
            return
        for rendered in self.runs.values():
            for name, text in rendered.files.items():
                if name != RUN_FILE:
                    yield rendered.plan.folder / "job" / name, text

    def commands(self, folder: Path) -> Iterator[str]:
        """What submitting runs, for people to see."""
        if self.array is not None:
            yield shlex.join(self._array_scheduler.submit_array_command(folder))
            return
        for rendered in self.runs.values():
            yield shlex.join(rendered.scheduler.submit_command(rendered.plan, rendered.plan.folder / "job"))

    def submit_into(self, sweep: Path, folders: Mapping[int, RunFolder]) -> Iterator[tuple[RunFolder, JobRecord]]:
        """Submit all, each into the folder of its run; ``sweep`` is the folder of the sweep.

        Raises:
            UserError: the scheduler refuses.
        """
        if self.array is None:
            for number, rendered in self.runs.items():
                yield folders[number], submit_into(folders[number], rendered)
            return
        for number, plan in self.array.plans.items():
            write_files(folders[number].job, self._array_scheduler.render_task(plan))
        write_files(sweep, self._array_scheduler.render_array(self.array))
        for number, job in self._array_scheduler.submit_array(self.array, sweep).items():
            record = replace(job, sweep=sweep.name)
            write_job(folders[number].job_file, record)
            yield folders[number], record

    @property
    def _array_scheduler(self) -> ArrayScheduler:
        scheduler = next(iter(self.runs.values())).scheduler
        assert isinstance(scheduler, ArrayScheduler)
        return scheduler


def render_sweep(name: str, runs: Mapping[int, LoadedConfig], scheduler_name: str) -> RenderedSweep:
    """What the runs of a sweep become as jobs. Writes nothing.

    Raises:
        UserError: a configuration lacks something that the scheduler must be told.
    """
    return _rendered(name, {number: render(loaded, scheduler_name, sweep=name) for number, loaded in runs.items()})


def submit_sweep(rendered: RenderedSweep, sweep: Sweep) -> Iterator[tuple[RunFolder, JobRecord]]:
    """Make the folders of all runs, and submit them; each is yielded once it is.

    Raises:
        UserError: a name is taken, or the scheduler refuses; folders of what was not submitted are gone again.
    """
    folders: dict[int, RunFolder] = {}
    with _removed_unless_submitted(folders, sweep):
        for number, each in rendered.runs.items():
            folders[number] = RunFolder.create(each.plan.folder.parent, each.plan.name)
            folders[number].write_config(to_yaml(each.plan.config))
        for folder, job in rendered.submit_into(sweep.path, folders):
            folder.make_latest()
            yield folder, job


def resubmit_sweep(sweep: Sweep, overrides: Sequence[str]) -> tuple[RenderedSweep, Mapping[int, RunFolder]]:
    """The runs of a sweep that have not finished, and whose jobs have ended, as jobs once more. Writes only the
    configurations of the runs.

    Raises:
        UserError: none is left, or as for :func:`render_sweep`.
    """
    again: dict[int, Rendered] = {}
    folders: dict[int, RunFolder] = {}
    for member in sweep.members:
        folder = sweep.run_folder(member)
        found = None if folder is None else job_of(folder)
        if folder is None or found is None or read_run_state(folder).state == "finished":
            continue
        rendered = render_again(folder, found[1], overrides)
        state = state_of(rendered, found[1])
        if state is None or state.stage == "ended":
            again[member.number], folders[member.number] = rendered, folder
    if not again:
        raise UserError(f"no run of {sweep.name} is left to resume: each has finished, or has a job that has not ended")
    for number, each in again.items():
        folders[number].write_config(to_yaml(each.plan.config))
    return _rendered(sweep.name, again), folders


def _rendered(name: str, runs: Mapping[int, Rendered]) -> RenderedSweep:
    scheduler = next(iter(runs.values())).scheduler
    if not isinstance(scheduler, ArrayScheduler):
        return RenderedSweep(runs=runs, array=None, remark=None)
    array = JobArray(name=name, plans={number: each.plan for number, each in runs.items()})
    reason = scheduler.why_apart(array)
    remark = None if reason is None else f"each run is a job of its own: {reason}"
    return RenderedSweep(runs=runs, array=array if reason is None else None, remark=remark)


@contextmanager
def _removed_unless_submitted(folders: Mapping[int, RunFolder], sweep: Sweep) -> Iterator[None]:
    try:
        yield
    except UserError:
        left = [folder for folder in folders.values() if not folder.job_file.exists()]
        for folder in left:
            shutil.rmtree(folder.path)
        if len(left) == len(folders):
            shutil.rmtree(sweep.path)
        raise
