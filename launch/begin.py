"""The first second of a run: say something, listen to signals, and begin what takes long beside the imports.

Imports nothing heavy itself: what it calls does.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from rich.console import Console

from rlserve import STARTED_S
from rlserve.config import LoadedConfig
from rlserve.errors import RlserveError
from rlserve.launch.signals import StopRequested, StopSignals, exit_code
from rlserve.pool.fork_server import ForkServer, worker_modules
from rlserve.pool.slots import slot_groups
from rlserve.roofline.accelerators import is_cpu
from rlserve.tracking.progress import ProgressState, create_progress

EXIT_FAILED = 1


def launch(loaded: LoadedConfig, resume: Path | None, *, may_begin: bool = False) -> int:
    """Run a configuration, or go on with the run in ``resume``; returns the exit code.

    With ``may_begin``, a run in ``resume`` that has no checkpoint yet begins.

    Raises:
        RlserveError: why the run could not start or go on.
    """
    with StopSignals() as signals:
        try:
            return _launch(loaded, resume, may_begin, signals)
        except StopRequested as stop:
            sys.stderr.write(f"stopped by {stop.number.name} before training: there is nothing new to save\n")
            return exit_code(stop.number)
        except RlserveError:
            raise
        except (OSError, MemoryError) as error:  # the machine's: the log file has the traceback
            sys.stderr.write(f"the run failed: {type(error).__name__}: {error}\n")
            return EXIT_FAILED


def _launch(loaded: LoadedConfig, resume: Path | None, may_begin: bool, signals: StopSignals) -> int:
    console, config = Console(), loaded.config
    progress = create_progress(config.tracking.progress, console)
    fork_server: ForkServer | None = None
    try:
        name = resume.name if resume is not None else config.name or loaded.source.stem
        progress.update(
            ProgressState(
                name=name, status="loading", step=0, num_steps=config.num_steps, elapsed_s=time.monotonic() - STARTED_S
            )
        )
        fork_server = _start_fork_server(loaded)
        from rlserve.launch.run import RunStart, run

        start = RunStart(
            loaded=loaded,
            resume=resume,
            may_begin=may_begin,
            started_s=STARTED_S,
            console=console,
            progress=progress,
            signals=signals,
            worker_python=None if fork_server is None else fork_server.worker_python,
        )
        return run(start)
    finally:
        progress.close()
        if fork_server is not None:
            fork_server.close()


def _start_fork_server(loaded: LoadedConfig) -> ForkServer | None:
    """Where all workers are processes of this machine's CPU, with one number of threads."""
    config = loaded.config
    groups = slot_groups(config.pool, loaded.discovered) if config.launch.kind == "local" else ()
    num_threads = {group.num_threads for group in groups}
    if len(num_threads) != 1 or not all(is_cpu(group.type) for group in groups):
        return None
    return ForkServer(num_threads.pop(), worker_modules(config.trainer))
