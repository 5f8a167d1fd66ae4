"""Several runs as one job of a scheduler that has arrays of jobs.

::

    NAME-1, NAME-2, NAME-3 ──render_array──► NAME/job.sbatch: task N has the run NAME-N, whose files are in NAME-N/job/
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlserve.launch.schedulers.base import Scheduler
from rlserve.launch.schedulers.plan import JobPlan
from rlserve.tracking.job_record import JobRecord


@dataclass(frozen=True, kw_only=True)
class JobArray:
    """Runs that may become tasks of one job."""

    name: str
    """Of the sweep; task N has the run ``NAME-N``."""
    plans: Mapping[int, JobPlan]
    """Of each task, by its number."""

    @property
    def prefix(self) -> str:
        """What the folders of all runs begin with; the number of a task follows."""
        return str(next(iter(self.plans.values())).folder.parent / f"{self.name}-")

    @property
    def tasks(self) -> str:
        """Their numbers: ``1-4,7``."""
        return ",".join(_ranges(sorted(self.plans)))


class ArrayScheduler(Scheduler):
    """A scheduler that has arrays of jobs."""

    @abstractmethod
    def why_apart(self, array: JobArray) -> str | None:
        """Why these runs cannot be tasks of one job; None where they can. Pure."""

    @abstractmethod
    def render_array(self, array: JobArray) -> Mapping[str, str]:
        """The files of the job, which lie in the folder of the sweep; pure."""

    @abstractmethod
    def render_task(self, plan: JobPlan) -> Mapping[str, str]:
        """The files of one run, which lie in ``job/`` of its folder; pure."""

    @abstractmethod
    def submit_array_command(self, folder: Path) -> Sequence[str]:
        """What :meth:`submit_array` runs, for people to see; ``folder`` is that of the sweep."""

    @abstractmethod
    def submit_array(self, array: JobArray, folder: Path) -> Mapping[int, JobRecord]:
        """Submit the files in ``folder``; returns the job of each task.

        Raises:
            UserError: the scheduler cannot be reached, or refuses.
        """


def _ranges(numbers: Sequence[int]) -> Iterator[str]:
    start = 0
    for place, number in enumerate(numbers):
        if place + 1 == len(numbers) or numbers[place + 1] != number + 1:
            first = numbers[start]
            yield str(first) if first == number else f"{first}-{number}"
            start = place + 1
