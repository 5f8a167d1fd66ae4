"""Measure what a move takes from the decision to useful work in the new role: a real run whose slots are moved by hand,
one after the other, in both directions.

python benchmarks/reallocate.py [--moves N] [--folder DIR] [--json FILE] [SETTING …]

The run is that of conf/rlhf.yaml, with the settings that are given. Gangs are moved as by ``rlserve move``, by chance
one of those that may. All figures are read from the run's files. A run that lies in ``--folder`` already is not done
again. The exit code is 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from checks import Check
from launches import launch, read_summary
from machine import circumstances
from move_times import PARTS, Gaps, MoveTimes, gaps_beyond_usual, num_tokens_made_twice, read_moves

from rlserve.errors import UserError
from rlserve.tracking.jsonl import read_json_lines
from rlserve.tracking.move_requests import GangStatus, RoleName, ask
from rlserve.tracking.run_folder import RunFolder

NAME = "reallocate"
NUM_QUIET_STEPS = 12
"""Before the first move, to see how long the gaps between engine steps usually are."""
STEPS_PER_MOVE = 6
"""That the run is given; moves end where they do not suffice."""
SPARE_MOVES = 0.1
"""More than are asked for: a gang may be moved on before it had anything to do."""
ANSWER_S = 120.0
MAX_MOVE_S, MAX_STALL_S = 1.0, 0.05
DIRECTIONS = {"to_rollout": "to rollout", "to_train": "to training"}
PERCENTILES = (50, 90, 99, 100)

SETTINGS = (
    "manager=static",
    "pool.num_initial_rollout=2",
    "data.num_held_out=1",  # its answer is kept, so every token is accounted for
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do the run, print the table and the checks, and write the JSON; returns the exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks/reallocate.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("settings", nargs="*", metavar="SETTING", help="of the run, as for rlserve launch")
    parser.add_argument("--moves", type=int, default=200, metavar="N", help="how many at least (200)")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where the run lies, or is put (a new folder)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    folder = (options.folder or Path(tempfile.mkdtemp(prefix="reallocate-"))).absolute()
    print(f"run: {folder / NAME}", file=sys.stderr)
    if not (folder / NAME).exists():
        move_about(folder, options.moves, options.settings)
    moves, gaps, found = measure(RunFolder.open(folder / NAME), options.moves)
    report(moves, gaps)
    for check in found:
        sign = "at least" if check.at_least else "at most"
        print(f"{'met   ' if check.met else 'MISSED'}  {check.name}: {check.value:.3g}, {sign} {check.bar:g}")
    if options.json:
        content: dict[str, Any] = {**circumstances(), "settings": options.settings}
        content["moves"] = [asdict(move) for move in moves]
        content["gaps"] = None if gaps is None else asdict(gaps)
        content["checks"] = [check.line() for check in found]
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0 if all(check.met for check in found) else 1


def move_about(folder: Path, num_moves: int, settings: Sequence[str]) -> None:
    """Do a run and move its gangs until ``num_moves`` and some were made, or it has ended; return at its end."""
    chance = random.Random(0)
    num_moves += math.ceil(SPARE_MOVES * num_moves)
    num_steps = NUM_QUIET_STEPS + STEPS_PER_MOVE * num_moves
    with ThreadPoolExecutor(1) as threads:
        run = threads.submit(
            launch, "conf/rlhf.yaml", *SETTINGS, f"num_steps={num_steps}", *settings, name=NAME, folder=folder
        )
        wait_for_steps(folder / NAME, run)
        try:
            place, num_made = RunFolder.open(folder / NAME), 0
            answer = ask(place, "show", timeout_s=ANSWER_S)
            while num_made < num_moves:
                gang_id, role = chance.choice(possible_moves(answer.gangs))
                answer = ask(place, "move", gang_id, role, timeout_s=ANSWER_S)
                num_made += answer.outcome == "done"
        except UserError as error:  # the run has ended, by itself or with an error, which its result raises
            print(error, file=sys.stderr)
        run.result()


def wait_for_steps(path: Path, run: Future[None]) -> None:
    """Wait until a run has done its quiet steps; if it ends before, so does this."""
    while not run.done():
        events = read_json_lines(path / "events.jsonl")
        if sum(event["event"] == "step" for event in events) >= NUM_QUIET_STEPS:
            return
        time.sleep(0.5)
    run.result()


def possible_moves(gangs: Iterable[GangStatus]) -> list[tuple[str, RoleName]]:
    """Gangs that another one has the role of, with the role that they can take."""
    roles: dict[str, RoleName] = {"train": "rollout", "rollout": "train"}
    by_role = {role: [gang.id for gang in gangs if gang.state == role] for role in roles}
    return [(gang_id, roles[role]) for role, ids in by_role.items() if len(ids) > 1 for gang_id in ids]


def measure(run: RunFolder, num_moves: int) -> tuple[list[MoveTimes], Gaps | None, list[Check]]:
    """The moves of a run that has ended, the gaps of its replicas, and what is to be reached."""
    events, summary = read_json_lines(run.events_file), read_summary(run.path)
    moves = read_moves(read_json_lines(run.decisions_file), events)
    gaps = gaps_beyond_usual(moves, events)
    found = [Check(name="moves", value=len(moves), bar=num_moves)]
    for action, name in DIRECTIONS.items():
        own = [move for move in moves if move.action == action]
        if own:
            for what, values in (
                ("from the decision to useful work, p99, s", [move.total_s for move in own]),
                ("the same without waiting for a step's end, p99, s", [move.own_s for move in own]),
            ):
                found.append(
                    Check(name=f"{name}: {what}", value=percentile(values, 99), bar=MAX_MOVE_S, at_least=False)
                )
    if gaps is not None:
        name, value = "longest gap of the other replicas beyond the usual, p99, s", percentile(gaps.in_moves_s, 99)
        found.append(Check(name=name, value=value, bar=MAX_STALL_S, at_least=False))
    num_lost = summary["groups_admitted"] - summary["groups_trained"] - sum(summary["groups_dropped"].values())
    found.append(Check(name="prompt groups lost", value=num_lost, bar=0, at_least=False))
    lines = [read_json_lines(path) for path in (run.metrics_file, run.samples_file, run.answers_file)]
    num_twice = num_tokens_made_twice(*lines)
    found.append(Check(name="tokens lost, and made again", value=num_twice, bar=0, at_least=False))
    return moves, gaps, found


def percentile(values: Sequence[float], share: float) -> float:
    """Of all moves, the one below which ``share`` per cent lie: a value that was measured."""
    return float(np.percentile(values, share, method="higher"))


def report(moves: Sequence[MoveTimes], gaps: Gaps | None) -> None:
    """Print the split of the time, by direction."""
    for action, name in DIRECTIONS.items():
        own = [move for move in moves if move.action == action]
        if not own:
            continue
        print(
            f"{len(own)} moves {name}, in ms".ljust(44)
            + "".join(title.rjust(8) for title in ("p50", "p90", "p99", "max"))
        )
        for part in PARTS[action]:
            _row(part, [move.parts_s[part] for move in own])
        _row("all, from the decision to useful work", [move.total_s for move in own])
        _row("all without waits", [move.own_s for move in own])
        first_steps = [move.first_step_s for move in own if move.first_step_s is not None]
        if first_steps:
            _row("to the end of its first step", first_steps)
        _row("training stood still", [move.trainer_pause_s for move in own])
    if gaps is not None:
        _row("gap of other replicas beyond the usual", gaps.in_moves_s)
        if gaps.between_moves_s:
            _row("the same of any replica, between moves", gaps.between_moves_s)


def _row(name: str, values: Sequence[float]) -> None:
    print(f"  {name:42}" + "".join(f"{1e3 * percentile(values, share):8.0f}" for share in PERCENTILES))


if __name__ == "__main__":
    sys.exit(main())
