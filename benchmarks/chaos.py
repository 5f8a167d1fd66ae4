"""Hurt real runs on purpose, in every state that a worker can be in, and check that nothing is lost.

python benchmarks/chaos.py [--moves-and-kills N] [--seed N] [--steps N] [--folder DIR] [--json FILE] [SETTING …]

Runs of conf/rlhf.yaml are moved about by hand and hurt: workers are killed and stopped, slowed down and left without
memory, disks fill, scorers die. What is next is drawn from the seed, and done as soon as the run's files show a worker
in the state that it is for. The first run loses its controller too, finds its newest checkpoint damaged, and is resumed
from the one before; the next two are without staleness, and the one that loses replicas must train on the same as the
other. Ctrl-C ends it with what was found until then. The exit code is 1 where a check is missed.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from chaos_parts.base import Fault, Injury, Kind, State
from chaos_parts.injector import Injector
from chaos_parts.plan import mixture
from chaos_parts.run_watch import ROOT, RunWatch
from chaos_parts.summary import checks_of, rows_of, table
from chaos_parts.verdict import Verdict, judge, same_training
from checks import Check
from machine import circumstances

from rlserve.tracking.jsonl import read_json_lines

CONFIG = ROOT / "conf" / "rlhf.yaml"
SETTINGS = (
    "manager=static",
    "tracking=off",
    "tracking.report=false",
    "pool.num_initial_rollout=2",
    "pool.max_worker_failures=1000000",
    "reward.max_failure_share=0.9",
    "pool.move_hold_s=0",
)
SAVE_EVERY = 10
LAST_STEPS = 6
"""In which a run is left alone, so that whoever was hurt last is back before it ends."""
END_S = 300.0
LEAST_SCORE = 0.9
"""Held-out, after as many steps as a run does here; undisturbed it is 0.95 after twelve."""
EXACT_STEPS = 12
EXACT = ("rollout.max_staleness=0", "checkpoint.every_steps=0")


class RunFailedError(RuntimeError):
    """A run ended with an error, which is in its output."""


@dataclass(kw_only=True)
class Findings:
    """Of all runs up to now."""

    injuries: list[Injury] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    """Of single runs."""
    num_moves: int = 0
    num_left: int = 0
    """Processes."""
    num_left_out: int = 0
    """Faults whose state did not come."""
    num_failed: int = 0
    """Runs that ended with an error, or in which a worker did not come back."""

    @property
    def num_done(self) -> int:
        """Moves and faults."""
        return self.num_moves + len(self.injuries)


class Bench:
    """Does runs in one folder."""

    def __init__(self, folder: Path, settings: Sequence[str], *, num_steps: int, seed: int) -> None:
        self._folder = folder
        self._settings = settings
        self._num_steps = num_steps
        self._seed = seed
        self.findings = Findings()

    def all_runs(self, num_wanted: int) -> None:
        """One that is resumed, two that must be alike, and as many others as it takes."""
        self.attempt(self.resumed_run)
        self.attempt(self.exact_runs)
        for number in itertools.count():
            num_left = num_wanted - self.findings.num_done
            if num_left <= 0:
                return
            self.attempt(functools.partial(self.mixed_run, number, num_left))

    def attempt(self, runs: Callable[[], None]) -> None:
        """Do some runs; one that ends with an error, or in which a worker does not come back, is named and counted."""
        try:
            runs()
        except (RunFailedError, TimeoutError) as error:
            self.findings.num_failed += 1
            print(error, file=sys.stderr)

    def resumed_run(self) -> None:
        """One whose controller is killed in the middle of everything."""
        name, first = "resumed", self._started("resumed", f"checkpoint.every_steps={SAVE_EVERY}")
        checkpoints = self._folder / name / "checkpoints"
        try:
            self._hurt(first, mixture(self._seed), last_step=self._num_steps // 2, limit=sys.maxsize)
            _wait_for(first, lambda: len(list(checkpoints.glob("step_*"))) >= 2)
            injury = Injury(
                fault=Fault(kind=Kind.KILL_CONTROLLER),
                slot_id="controller",
                process_id=first.process.pid,
                done_s=time.monotonic(),
            )
            os.kill(first.process.pid, signal.SIGKILL)
            first.process.wait()
            self.findings.injuries.append(injury)
            self.findings.num_left += first.num_left(END_S / 5)
        finally:
            first.end()
        damaged = _damage(max(checkpoints.glob("step_*")))
        second = RunWatch(self._folder / name, ["--resume", str(self._folder / name)])
        try:
            self._hurt(second, mixture(self._seed + 1), last_step=self._num_steps - LAST_STEPS, limit=sys.maxsize)
            self._finish(second)
        finally:
            second.end()
        is_named = f"{damaged.name} is damaged" in second.output
        self.findings.checks.append(
            Check(name="damaged checkpoint is named and passed over", value=float(is_named), bar=1)
        )

    def exact_runs(self) -> None:
        """Two of one seed and without staleness, of which one loses replicas."""
        settings = (*EXACT, f"num_steps={EXACT_STEPS}")
        states = itertools.cycle((State.GENERATING, State.SYNC, State.IDLE))
        kills = (Fault(kind=Kind.KILL, state=state) for state in states)
        trained = []
        for name in ("undisturbed", "replicas-lost"):
            watch = self._started(name, *settings)
            try:
                if name == "replicas-lost":
                    self._hurt(watch, kills, last_step=EXACT_STEPS - 2, limit=sys.maxsize, roles=("rollout",))
                self._finish(watch)
            finally:
                watch.end()
            trained.append(read_json_lines(watch.folder / "samples.jsonl"))
        is_same = float(same_training(*trained))
        self.findings.checks.append(
            Check(name="staleness 0, replicas lost: trained on the same as undisturbed", value=is_same, bar=1)
        )

    def mixed_run(self, number: int, limit: int) -> None:
        """One that is moved about and hurt to its end, or until ``limit`` more moves and faults are done."""
        watch = self._started(f"mixed-{number}", f"checkpoint.every_steps={SAVE_EVERY}")
        try:
            faults = mixture(self._seed + 100 + number)
            self._hurt(watch, faults, last_step=self._num_steps - LAST_STEPS, limit=limit)
            self._finish(watch)
        finally:
            watch.end()

    def _started(self, name: str, *settings: str) -> RunWatch:
        arguments = [f"name={name}", f"output_dir={self._folder}", f"num_steps={self._num_steps}"]
        return RunWatch(self._folder / name, [str(CONFIG), *SETTINGS, *arguments, *settings, *self._settings])

    def _hurt(
        self,
        watch: RunWatch,
        faults: Iterable[Fault],
        *,
        last_step: int,
        limit: int,
        roles: Sequence[str] = ("train", "rollout"),
    ) -> None:
        injector = Injector(watch, faults, seed=self._seed, roles=roles)
        try:
            injector.run(last_step=last_step, limit=limit)
        finally:
            self.findings.injuries += injector.injuries
            self.findings.num_moves += injector.num_moves
            self.findings.num_left_out += injector.num_left_out
        if watch.has_ended:
            _check_ended_well(watch)
        print(f"{watch.folder.name}: {injector.num_done} moves and faults by step {watch.step}", file=sys.stderr)

    def _finish(self, watch: RunWatch) -> None:
        watch.process.wait(END_S)
        _check_ended_well(watch)
        self.findings.num_left += watch.num_left(END_S / 5)
        self.findings.verdicts.append(judge(watch.folder))


def main(arguments: Sequence[str] | None = None) -> int:
    """Do the runs, print the table and the checks, and write the JSON; returns the exit code."""
    options = _parser().parse_args(arguments)
    folder = (options.folder or Path(tempfile.mkdtemp(prefix="chaos-"))).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    print(f"runs: {folder}", file=sys.stderr)
    bench = Bench(folder, options.settings, num_steps=options.steps, seed=options.seed)
    findings = bench.findings
    try:
        bench.all_runs(options.moves_and_kills)
    except KeyboardInterrupt:
        print("interrupted: this is what was found until now", file=sys.stderr)
    rows = rows_of(findings.injuries)
    found = checks_of(
        findings.injuries,
        findings.verdicts,
        num_done=findings.num_done,
        num_wanted=options.moves_and_kills,
        num_left=findings.num_left,
        num_failed=findings.num_failed,
        least_score=LEAST_SCORE,
    )
    found += findings.checks
    print("\n".join(table(rows)))
    print(f"{'move':24}{findings.num_moves:>8}\n{findings.num_left_out} faults left out: nobody came into their state")
    for check in found:
        sign = "at least" if check.at_least else "at most"
        print(f"{'met   ' if check.met else 'MISSED'}  {check.name}: {check.value:.3g}, {sign} {check.bar:g}")
    if options.json:
        content: dict[str, Any] = {**circumstances(), "seed": options.seed, "settings": options.settings}
        content |= {"rows": [asdict(row) for row in rows], "num_moves": findings.num_moves}
        content["verdicts"] = [asdict(verdict) for verdict in findings.verdicts]
        content["checks"] = [check.line() for check in found]
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0 if all(check.met for check in found) else 1


def _check_ended_well(watch: RunWatch) -> None:
    if watch.process.returncode != 0:
        raise RunFailedError(f"{watch.folder} ended with {watch.process.returncode}:\n{watch.output[-3000:]}")


def _wait_for(watch: RunWatch, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + END_S
    while not condition() and not watch.has_ended and time.monotonic() < deadline:
        time.sleep(0.1)


def _damage(checkpoint: Path) -> Path:
    """Change one byte of the trainer's state."""
    path = min((checkpoint / "trainer").glob("*.safetensors"))
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    return checkpoint


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks/chaos.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("settings", nargs="*", metavar="SETTING", help="of the runs, as for rlserve launch")
    parser.add_argument("--moves-and-kills", type=int, default=1000, metavar="N", help="how many at least (1000)")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--steps", type=int, default=250, metavar="N", help="of each run (250)")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where the runs are put (a new folder)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
