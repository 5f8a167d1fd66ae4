"""The contract of a scheduler: from a run to files, from files to a job, and what a job can be asked.

::

    run's configuration ──► JobPlan ──render──► files in RUN/job/ ──submit──► job, noted in RUN/job.json
                                                       └── resume: the same files once more

Every job starts its run by ``rlserve launch … --continue``, so a job that is started again goes on where it stopped.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from rlserve.launch.schedulers.plan import JobPlan
from rlserve.tracking.job_record import JobRecord


@dataclass(frozen=True, kw_only=True)
class JobState:
    """What a scheduler says of a job."""

    stage: Literal["waiting", "running", "ended"]
    detail: str
    """In the scheduler's own words."""


class Scheduler(ABC):
    """One kind of cluster."""

    name: ClassVar[str]

    @abstractmethod
    def render(self, plan: JobPlan) -> Mapping[str, str]:
        """The files of a job by name; pure.

        Raises:
            UserError: something is not set that this scheduler needs.
        """

    @abstractmethod
    def submit_command(self, plan: JobPlan, folder: Path) -> Sequence[str]:
        """What :meth:`submit` runs, for people to see; ``folder`` is that of the job's files."""

    @abstractmethod
    def submit(self, plan: JobPlan, folder: Path) -> JobRecord:
        """Check and submit the files in ``folder``.

        Raises:
            UserError: the scheduler cannot be reached, or refuses.
        """

    @abstractmethod
    def state(self, job: JobRecord) -> JobState | None:
        """How a job stands; None where the scheduler knows it no longer.

        Raises:
            UserError: the scheduler cannot be reached.
        """

    def is_elsewhere(self, plan: JobPlan, job: JobRecord) -> bool:
        """Whether ``plan`` is for another cluster than that of a job, which then need not answer any more."""
        return False

    @abstractmethod
    def print_logs(self, job: JobRecord, *, follow: bool) -> int:
        """Let the scheduler print what the job has written; returns its exit code.

        Raises:
            UserError: the scheduler cannot be reached.
        """

    @abstractmethod
    def cancel(self, job: JobRecord) -> None:
        """End a job in such a way that its run saves, and is not begun again.

        Raises:
            UserError: the scheduler cannot be reached, or refuses.
        """
