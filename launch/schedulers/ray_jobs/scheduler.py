"""A run as a job of a Ray cluster, by Ray's own job server.

The job's files are read from the run's folder, which all machines of the cluster see. Ray is given no ``working_dir``:
it keeps a copy on each node by a count of its users, and may remove it between two of them, a job's driver and its
workers, which then cannot start.

::

    PENDING ──► RUNNING ──stop: SIGTERM, the run saves──► STOPPED ──rlserve resume: a new job──► PENDING …
                   └── SUCCEEDED, FAILED
"""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rlserve.errors import UserError
from rlserve.launch.schedulers.base import JobState, Scheduler
from rlserve.launch.schedulers.plan import JobPlan
from rlserve.launch.schedulers.templates import render_templates
from rlserve.tracking.job_record import JobRecord

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

ENTRYPOINT_FILE = "entrypoint.sh"
RUNTIME_ENV_FILE = "runtime_env.yaml"
_ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
_STAGES = {"PENDING": "waiting", "RUNNING": "running"}
_UNKNOWN_JOB = "does not exist"
_NO_AGENT = "No available agent"
"""What the job server of a new head says while the process is coming up that starts jobs."""
_AGENT_WAIT_S = 120.0
_AGENT_INTERVAL_S = 1.0
"""Beside the ten seconds that the job server waits by itself."""


class RayScheduler(Scheduler):
    """By Ray's client of its job server, which adds the token where one is set up for Ray."""

    name = "ray"

    def render(self, plan: JobPlan) -> Mapping[str, str]:
        return {**render_templates(Path(__file__).parent, plan), "run.yaml": plan.run_file}

    def submit_command(self, plan: JobPlan, folder: Path) -> Sequence[str]:
        address = plan.launch.ray.address
        to = [] if address is None else ["--address", address]
        what = ["--runtime-env", str(folder / RUNTIME_ENV_FILE), "--no-wait", "--", "sh", str(folder / ENTRYPOINT_FILE)]
        return ("ray", "job", "submit", *to, *what)

    def submit(self, plan: JobPlan, folder: Path) -> JobRecord:
        address = plan.launch.ray.address or os.environ.get(_ADDRESS_VARIABLE)
        if not address:
            raise UserError(f"launch.ray.address, or {_ADDRESS_VARIABLE}, must name Ray's job server: http://HEAD:8265")
        job = {
            "entrypoint": f"exec sh {shlex.quote(str(folder / ENTRYPOINT_FILE))}",
            "runtime_env": yaml.safe_load((folder / RUNTIME_ENV_FILE).read_text(encoding="utf-8")),
            "metadata": {"rlserve_run": plan.name, **({"rlserve_sweep": plan.sweep} if plan.sweep else {})},
        }
        return JobRecord(scheduler=self.name, id=_submit(address, job), place=address)

    def state(self, job: JobRecord) -> JobState | None:
        try:
            with _connected(job.place) as client:
                info = client.get_job_info(job.id)
        except UserError as error:
            if _UNKNOWN_JOB in str(error):
                return None
            raise
        status = str(info.status.value)
        detail = f"{status} ({info.message})" if status == "FAILED" and info.message else status
        return JobState(stage=_STAGES.get(status, "ended"), detail=detail)  # type: ignore[arg-type]

    def is_elsewhere(self, plan: JobPlan, job: JobRecord) -> bool:
        return plan.launch.ray.address not in (None, job.place)

    def print_logs(self, job: JobRecord, *, follow: bool) -> int:
        with _connected(job.place) as client:
            if follow:
                asyncio.run(_print_as_it_comes(client, job.id))
            else:
                sys.stdout.write(client.get_job_logs(job.id))
        return 0

    def cancel(self, job: JobRecord) -> None:
        with _connected(job.place) as client:
            client.stop_job(job.id)


def _submit(address: str, job: Mapping[str, Any]) -> str:
    """Hand a job in, once the cluster can start one; returns its id.

    Raises:
        UserError: as for :func:`_connected`.
    """
    deadline_s = time.monotonic() + _AGENT_WAIT_S
    while True:
        try:
            with _connected(address) as client:
                return str(client.submit_job(**job))
        except UserError as error:
            if _NO_AGENT not in str(error) or time.monotonic() > deadline_s:
                raise
        time.sleep(_AGENT_INTERVAL_S)


async def _print_as_it_comes(client: JobSubmissionClient, job_id: str) -> None:
    async for lines in client.tail_job_logs(job_id):
        sys.stdout.write(lines)
        sys.stdout.flush()


@contextmanager
def _connected(address: str) -> Iterator[JobSubmissionClient]:
    """A client of the job server.

    Raises:
        UserError: it does not answer, or refuses.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    from ray.job_submission import JobSubmissionClient  # takes a second

    try:
        yield JobSubmissionClient(address)
    except (ConnectionError, RuntimeError) as error:
        raise UserError(f"Ray's job server at {address}: {str(error).strip()}") from error
