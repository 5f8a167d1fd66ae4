"""Measure what a run loses when nodes come, leave with a notice, or are lost with its head.

python benchmarks/node_times.py [--part joining|leaving|loss|job|pod …] [--joinings N] [--busy N]
                                [--folder DIR] [--json FILE]

Nodes are Ray nodes on this machine, beside the run: a node that joins has no processors of its own, so in ``joining``
the run is one whose rewards come late and which leaves them to it. Times are from outside: from what is done to the run
(the node is in the cluster, the notice is given, the processes are killed) until its files show what is waited for. The
exit code is 1 where a check is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from checks import Check
from machine import circumstances
from node_parts.cluster import ENVIRONMENT
from node_parts.joining import Joining, joinings
from node_parts.leaving import Leavings, leavings
from node_parts.loss import SAVE_EVERY, Loss, job_loss, local_loss, pod_loss

from rlserve.tracking.cost.interruptions import KILLED

USEFUL_S = 15.0
EMPTIED_S = 5.0
RESUMED_S = 60.0
"""Most of it is the start of a run, which depends on what else the machine does."""
PARTS = ("joining", "leaving", "loss", "job", "pod")


def checks_of_joinings(found: Sequence[Joining], *, num_busy: int = 0) -> list[Check]:
    """Of nodes that were started as our jobs start them, and of others, by their role."""
    beside = f" beside {num_busy} busy processes" if num_busy else ""
    checks = []
    for way, role in sorted({(each.way, each.role) for each in found}):
        value = median(each.useful_s for each in found if (each.way, each.role) == (way, role))
        name = f"node joins by {way}: from joined to useful ({role}), median{beside}, s"
        checks.append(Check(name=name, value=value, bar=USEFUL_S, at_least=False))
    return checks


def checks_of_leavings(found: Leavings) -> list[Check]:
    """Of notices."""
    longest = max(each.emptied_s for each in found.leavings)
    return [
        Check(name="notice: emptied, longest, s", value=longest, bar=EMPTIED_S, at_least=False),
        Check(name="notice: tokens lost", value=found.num_lost_tokens, bar=0, at_least=False),
        Check(name="notice: prompt groups or steps lost", value=found.num_lost, bar=0, at_least=False),
    ]


def checks_of_loss(found: Loss, *, save_every: int) -> list[Check]:
    """Of a head that was lost."""
    what = f"{found.what} {'killed' if found.interruption.ended_by == KILLED else 'evicted'}"
    lost_s = found.interruption.lost_s
    return [
        Check(name=f"{what}: lost, by the run's own records, s", value=lost_s, bar=RESUMED_S, at_least=False),
        Check(name=f"{what}: until a new step, s", value=found.resumed_s, bar=RESUMED_S, at_least=False),
        Check(name=f"{what}: steps done again", value=found.num_again, bar=save_every, at_least=False),
        Check(name=f"{what}: prompt groups or steps lost", value=found.num_lost, bar=0, at_least=False),
        Check(name=f"{what}: prompt groups trained twice", value=found.num_trained_twice, bar=0, at_least=False),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write the JSON; returns the exit code."""
    options = _parser().parse_args(arguments)
    os.environ.update(ENVIRONMENT)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # clusters and runs end with us
    folder = (options.folder or Path(tempfile.mkdtemp(prefix="node-times-"))).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {**circumstances(), "load": {}}
    found: list[Check] = []
    measure: dict[str, Callable[[], tuple[Any, list[Check]]]] = {
        "joining": lambda: _joinings(folder, options.joinings, options.busy),
        "leaving": lambda: _leavings(folder),
        "loss": lambda: _loss(local_loss(folder)),
        "job": lambda: _loss(job_loss(folder)),
        "pod": lambda: _loss(pod_loss(folder)),
    }
    for part in options.part or PARTS:
        rows, checks = measure[part]()
        beside = f" beside {options.busy} busy processes" if part == "joining" and options.busy else ""
        content[part + beside], content["load"][part + beside] = rows, os.getloadavg()[1]
        found += checks
        for check in checks:
            sign = "at least" if check.at_least else "at most"
            print(f"{'met   ' if check.met else 'MISSED'}  {check.name}: {check.value:.3g}, {sign} {check.bar:g}")
    content["checks"] = [check.line() for check in found]
    if options.json:
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0 if all(check.met for check in found) else 1


def _joinings(folder: Path, num_each: int, num_busy: int) -> tuple[Any, list[Check]]:
    found = joinings(folder, num_each, num_busy=num_busy)
    return [asdict(each) for each in found], checks_of_joinings(found, num_busy=num_busy)


def _leavings(folder: Path) -> tuple[Any, list[Check]]:
    found = leavings(folder)
    return asdict(found), checks_of_leavings(found)


def _loss(found: Loss) -> tuple[Any, list[Check]]:
    return asdict(found), checks_of_loss(found, save_every=SAVE_EVERY)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks/node_times.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--part", action="append", choices=PARTS, help="only this; may be repeated (all)")
    parser.add_argument("--joinings", type=int, default=2, metavar="N", help="pairs of nodes that join in each way (2)")
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="other processes that compute meanwhile (0)")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where the runs are put (a new folder)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
