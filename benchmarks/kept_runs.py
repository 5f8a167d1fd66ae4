"""Simulated runs that are done once: those whose policy looks at no measurement, kept in a folder.

A run is found again where its scenario, its policy's configuration, its seed, and the sources that it follows from are
the same. The sources of policies that measure are not among them, so while one of these is worked on, the static splits
that it is compared with need not be simulated again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import rlserve
from rlserve.manager.roles import Role
from rlserve.simulate.simulation import SimulatedMove, SimulatedRun
from rlserve.simulate.study import Job, run_job
from rlserve.tracking.cost.accounts import Account
from rlserve.tracking.cost.statement import Statement
from rlserve.tracking.cost.uses import Use

POLICIES = ("static", "queue_threshold")
_SOURCES = (
    "simulate",
    "roofline",
    "tracking/cost",
    "rollout/workload",
    "rollout/buffer.py",
    "rollout/ledger.py",
    "manager/gang_table.py",
    "manager/initial_split.py",
    "manager/leaving.py",
    *(f"manager/policies/{name}.py" for name in ("bounds", "ordering", "placement", "queue_threshold", "static")),
)


@dataclass(frozen=True)
class KeptRuns:
    """Simulates a job, or reads what came of it before. Travels to other processes."""

    folder: Path
    sources: str
    """Digest of the sources."""

    def __call__(self, job: Job) -> SimulatedRun:
        """The job's run."""
        if job.manager.policy not in POLICIES:
            return run_job(job)
        path = self.folder / f"{_digest([repr(job).encode(), self.sources.encode()])}.json"
        if path.exists():
            return _read(path)
        run = run_job(job)
        path.write_text(json.dumps(_as_json(run)), encoding="utf-8")
        return run


def kept_runs(folder: Path) -> KeptRuns:
    """Keep runs in this folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    package = Path(rlserve.__file__).parent
    files = [
        file
        for name in _SOURCES
        for file in sorted((package / name).rglob("*.py") if (package / name).is_dir() else [package / name])
    ]
    return KeptRuns(folder, _digest(file.read_bytes() for file in files))


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.blake2b(digest_size=12)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def _as_json(run: SimulatedRun) -> dict[str, Any]:
    """Accounts are keys, which JSON has not: they stand in lists."""
    spent = run.spent
    accounts = {
        "owned_ns": [[asdict(account), duration_ns] for account, duration_ns in spent.owned_ns.items()],
        "spent_ns": [[asdict(account), dict(uses)] for account, uses in spent.spent_ns.items()],
    }
    others = asdict(replace(run, spent=replace(spent, owned_ns={}, spent_ns={})))
    return {**others, "spent": {**others["spent"], **accounts}}


def _read(path: Path) -> SimulatedRun:
    found = json.loads(path.read_text(encoding="utf-8"))
    spent = found.pop("spent")
    owned_ns = {Account(**account): duration_ns for account, duration_ns in spent.pop("owned_ns")}
    spent_ns = {
        Account(**account): {Use(use): duration_ns for use, duration_ns in uses.items()}
        for account, uses in spent.pop("spent_ns")
    }
    statement = Statement(owned_ns=owned_ns, spent_ns=spent_ns, **spent)
    moves = tuple(SimulatedMove(**{**move, "to": Role(move["to"])}) for move in found.pop("moves"))
    staleness = {int(age): number for age, number in found.pop("staleness").items()}
    ends_s = tuple(found.pop("step_ends_s"))
    return SimulatedRun(
        **{**found, "moves": moves, "staleness": staleness, "step_ends_s": ends_s, "history": (), "spent": statement}
    )
