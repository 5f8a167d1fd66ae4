"""``rlserve sweep``: a run for each combination of values, one after the other or as jobs of a scheduler."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from rlserve.cli.submit import SCHEDULER_NAMES

if TYPE_CHECKING:
    from rlserve.config import LoadedConfig

_FIRST_SIGNAL_EXIT = 128
_EXAMPLES = """\
examples:
  rlserve sweep conf/rlhf.yaml trainer.learning_rate=1e-5,1e-6
  rlserve sweep conf/rlhf.yaml algorithm=ppo,grpo 'seed=range(3)' --to slurm pool=h100_h200
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
    runs = _load_all(config_path, overrides, parsed.to)
    for each in runs:
        sys.stdout.write(f"{each.name}  {shlex.join(each.overrides[:-1])}\n")
    sys.stdout.flush()
    if parsed.dry_run:
        return 0
    if parsed.to is not None:
        return _submit_all(runs, parsed.to)
    exit_code = run_in_turn(runs, lambda each: _launch(config_path, each))
    folders = shlex.join(f"{each.loaded.config.output_dir}/{each.name}" for each in runs)
    sys.stdout.write(f"compare them with: rlserve compare {folders}\n")
    return exit_code


def run_in_turn(runs: Sequence[SweptRun], launch: Callable[[SweptRun], int]) -> int:
    """Run one after the other; returns the first exit code that is not 0. One that fails does not keep the others from
    being run, one that is stopped by a signal does."""
    first_failure = 0
    for each in runs:
        exit_code = launch(each)
        first_failure = first_failure or exit_code
        if exit_code > _FIRST_SIGNAL_EXIT or exit_code < 0:
            break
    return first_failure


def _load_all(config_path: str, overrides: Sequence[str], scheduler: str | None) -> list[SweptRun]:
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
    return runs


def _launch(config_path: str, each: SweptRun) -> int:
    return subprocess.run([sys.executable, "-m", "rlserve", "launch", config_path, *each.overrides]).returncode


def _submit_all(runs: Sequence[SweptRun], scheduler: str) -> int:
    from rlserve.launch.schedulers.submission import render, submit

    rendered = [render(each.loaded, scheduler) for each in runs]  # all, before the first is submitted
    for each in rendered:
        folder, job = submit(each)
        sys.stdout.write(f"{folder.name}: {job.scheduler} job {job.id}\n")
        sys.stdout.flush()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rlserve sweep",
        usage="rlserve sweep CONFIG key=value,value,... [key=value ...] [--to SCHEDULER] [--dry-run]",
        description="Run every combination of values, on this machine one after the other, or each as a job. All are "
        "checked before the first begins.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", nargs="+", metavar="CONFIG [key=value,...]", help="as for rlserve launch")
    parser.add_argument(
        "--to", choices=SCHEDULER_NAMES, metavar="SCHEDULER", help=f"a job each: {', '.join(SCHEDULER_NAMES)}"
    )
    parser.add_argument("--dry-run", action="store_true", help="check and list the runs, start none")
    return parser
