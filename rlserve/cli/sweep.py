"""``rlserve sweep``: a run for each combination of values, one after the other or as jobs of a scheduler."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rlserve.cli.submit import SCHEDULER_NAMES

if TYPE_CHECKING:
    from rlserve.config import LoadedConfig
    from rlserve.tracking.sweep_record import Sweep

Run = TypeVar("Run")
_FIRST_SIGNAL_EXIT = 128
_EXAMPLES = """\
examples:
  rlserve sweep conf/rlhf.yaml trainer.learning_rate=1e-5,1e-6
  rlserve sweep conf/rlhf.yaml algorithm=ppo,grpo name=recipes --to slurm pool=h100_h200
  rlserve status recipes; rlserve cancel recipes; rlserve resume recipes-2
  rlserve sweep conf/rlhf.yaml seed=0,1,2 --dry-run

Several values of a key are written in Hydra's grammar: a,b,c  range(1,10,2)  choice(a,b)
"""


@dataclass(frozen=True, kw_only=True)
class SweptRun:
    """One combination."""

    overrides: tuple[str, ...]
    """With the run's name."""
    loaded: LoadedConfig

    @property
    def name(self) -> str:
        """Of the run."""
        assert self.loaded.config.name is not None
        return self.loaded.config.name


def run(arguments: Sequence[str]) -> int:
    """Check all combinations, then run or submit them."""
    parsed = _parser().parse_intermixed_args(arguments)
    config_path, *overrides = parsed.config
    base, runs = _load_all(config_path, overrides, parsed.to)
    for each in runs:
        sys.stdout.write(f"{each.name}  {shlex.join(each.overrides[:-1])}\n")
    sys.stdout.flush()
    if parsed.to is not None:
        return _submit_all(config_path, base, runs, parsed.to, parsed.dry_run)
    if parsed.dry_run:
        return 0
    _create(config_path, base, runs)
    exit_code = run_in_turn(runs, lambda each: _launch(config_path, each))
    folders = shlex.join(f"{each.loaded.config.output_dir}/{each.name}" for each in runs)
    sys.stdout.write(f"compare them with: rlserve compare {folders}\n")
    return exit_code


def run_in_turn(runs: Sequence[Run], launch: Callable[[Run], int]) -> int:
    """Run one after the other; returns the first exit code that is not 0. One that fails does not keep the others from
    being run, one that is stopped by a signal does."""
    first_failure = 0
    for each in runs:
        exit_code = launch(each)
        first_failure = first_failure or exit_code
        if exit_code > _FIRST_SIGNAL_EXIT or exit_code < 0:
            break
    return first_failure


def _load_all(config_path: str, overrides: Sequence[str], scheduler: str | None) -> tuple[str, list[SweptRun]]:
    """The name of the sweep, and its runs."""
    from rlserve.config import load
    from rlserve.config.locate import locate
    from rlserve.config.prices import check_prices
    from rlserve.config.sweeps import expand_sweep
    from rlserve.launch.schedulers.submission import ON_CLUSTER
    from rlserve.tracking.run_folder import default_run_name

    fixed = ON_CLUSTER if scheduler is not None else ()
    given = next((word.partition("=")[2] for word in overrides if word.startswith("name=")), None)
    base = given or default_run_name(locate(config_path).path.stem, datetime.now())
    runs = []
    for number, combination in enumerate(expand_sweep([word for word in overrides if not word.startswith("name=")])):
        named = (*combination, f"name={base}-{number + 1}")
        loaded = load(config_path, [*named, *fixed])
        check_prices(loaded.config)
        runs.append(SweptRun(overrides=named, loaded=loaded))
    return base, runs


def _launch(config_path: str, each: SweptRun) -> int:
    return subprocess.run([sys.executable, "-m", "rlserve", "launch", config_path, *each.overrides]).returncode


def _create(config_path: str, base: str, runs: Sequence[SweptRun]) -> Sweep:
    from rlserve.config.locate import locate
    from rlserve.tracking.sweep_record import SweepMember, create_sweep

    members = [SweepMember(number=number, overrides=each.overrides) for number, each in enumerate(runs, 1)]
    path = Path(runs[0].loaded.config.output_dir) / base
    return create_sweep(path, str(locate(config_path).path.absolute()), members)


def _submit_all(config_path: str, base: str, runs: Sequence[SweptRun], scheduler: str, dry_run: bool) -> int:
    from rlserve.launch.schedulers.sweeps import render_sweep, submit_sweep

    rendered = render_sweep(base, {number: each.loaded for number, each in enumerate(runs, 1)}, scheduler)
    if rendered.remark is not None:
        sys.stderr.write(f"{rendered.remark}\n")
    if dry_run:
        folder = Path(runs[0].loaded.config.output_dir) / base
        for path, text in rendered.files(folder):
            sys.stdout.write(f"# ---- {path}\n{text.rstrip()}\n\n")
        for command in rendered.commands(folder):
            sys.stdout.write(f"# would run: {command}\n")
        return 0
    for each, job in submit_sweep(rendered, _create(config_path, base, runs)):
        sys.stdout.write(f"{each.name}: {job.scheduler} job {job.id}\n")
        sys.stdout.flush()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rlserve sweep",
        usage="rlserve sweep CONFIG key=value,value,... [key=value ...] [--to SCHEDULER] [--dry-run]",
        description="Run every combination of values: on this machine one after the other, in Slurm as an array of "
        "jobs, elsewhere each as a job. All are checked before the first begins.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", nargs="+", metavar="CONFIG [key=value,...]", help="as for rlserve launch")
    parser.add_argument(
        "--to", choices=SCHEDULER_NAMES, metavar="SCHEDULER", help=f"as jobs: {', '.join(SCHEDULER_NAMES)}"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check and list the runs, print the files of jobs, start none"
    )
    return parser
