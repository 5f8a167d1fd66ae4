"""Choosing the scheduler."""

from __future__ import annotations

from rlserve.errors import UserError
from rlserve.launch.schedulers.base import Scheduler
from rlserve.launch.schedulers.kubernetes.scheduler import KubernetesScheduler
from rlserve.launch.schedulers.ray_jobs.scheduler import RayScheduler
from rlserve.launch.schedulers.skypilot.scheduler import SkyPilotScheduler
from rlserve.launch.schedulers.slurm.scheduler import SlurmScheduler

SCHEDULERS: tuple[type[Scheduler], ...] = (SlurmScheduler, KubernetesScheduler, RayScheduler, SkyPilotScheduler)


def create_scheduler(name: str) -> Scheduler:
    """The scheduler of a name.

    Raises:
        UserError: there is none.
    """
    for scheduler in SCHEDULERS:
        if scheduler.name == name:
            return scheduler()
    raise UserError(f"no scheduler {name!r}; there are: {', '.join(scheduler.name for scheduler in SCHEDULERS)}")
