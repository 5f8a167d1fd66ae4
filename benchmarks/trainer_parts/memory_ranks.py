"""Memory of training: ranks as processes, each of which tells what it has held at most. Used by ours and the peer.

Counted from when all code is loaded, after a step on a tiny model, as ``trainer_memory.py`` does.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

from rank_processes import run_ranks

from trainer_parts.base import Assignment, Outcome, assignment_from


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which rank a process is."""

    rank: int
    num_ranks: int
    port: int
    """Of rank 0 on this machine, at which the ranks meet."""


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """What one rank has held."""

    added_bytes: int
    """The most during the steps, less what was held before the model was loaded."""
    num_parameters: int
    """Of the policy."""


def most_of_ranks(module: str, assignment: Assignment, small_folder: str) -> Outcome:
    """Run ``module`` as every rank; bytes a parameter of the rank that needs most.

    Raises:
        RuntimeError: a rank failed; it has said why on standard error.
    """
    task = json.dumps({"assignment": asdict(assignment), "small_folder": small_folder})
    num_ranks = assignment.case.num_ranks
    command = [sys.executable, "-m", module, "--task", task]
    found = [RankMemory(**said) for said in run_ranks(command, num_ranks=num_ranks, what=assignment.case.name)]
    most = max(found, key=lambda memory: memory.added_bytes)
    return Outcome(
        value=most.added_bytes / most.num_parameters,
        work={"parameters": most.num_parameters, "ranks": num_ranks, "steps": assignment.case.steps_per_turn},
    )


def run_rank(measure: Callable[[Assignment, str, Place], RankMemory]) -> None:
    """The main function of a rank: parse, measure, tell."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--task", type=json.loads, required=True)
    options = parser.parse_args()
    assignment = assignment_from(options.task["assignment"])
    place = Place(rank=options.rank, num_ranks=assignment.case.num_ranks, port=options.port)
    sys.stdout.write(json.dumps(asdict(measure(assignment, options.task["small_folder"], place))) + "\n")
