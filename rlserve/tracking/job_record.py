"""``job.json`` in a run's folder: the job of a scheduler that the run belongs to."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from rlserve.errors import DataError
from rlserve.tracking.run_folder import write_atomically


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """The newest job of a run."""

    scheduler: str
    id: str
    """As the scheduler names it."""
    place: str
    """Where the scheduler has it: a namespace, an address; empty where its name is enough."""
    sweep: str | None = None
    """Name of the sweep that the run is of."""


def write_job(path: Path, job: JobRecord) -> None:
    """Note the newest job."""
    write_atomically(path, json.dumps(asdict(job), indent=2) + "\n")


def read_job(path: Path) -> JobRecord | None:
    """The newest job; None where the run was not submitted.

    Raises:
        DataError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        return JobRecord(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is damaged: {error}") from error
