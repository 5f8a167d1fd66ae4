"""One run from the command to its exit code: folder, preparation, Ray, controller, report.

::

    run folder ─► preparation (model, prompts, reward: all that can be wrong is found here) ─► Ray and slots
        ─► controller.run ─► summary.json, report.png, report.html ─► exit code

Exit codes: 0 finished, 128 + number stopped by a signal (130: Ctrl-C, 143: SIGTERM, …), after a checkpoint if there
was anything to save, 2 something the user can mend, 1 the run failed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import signal
import time
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rich.console import Console

from rlserve.config import LoadedConfig, as_plain, to_yaml
from rlserve.config.pool_split import first_roles
from rlserve.config.prices import check_hourly
from rlserve.config.remarks import remarks_on_split
from rlserve.controller.build import build_controller
from rlserve.controller.checkpoint import SavedRun, checkpoints, newest_checkpoint, read_run
from rlserve.controller.clock import RunClock
from rlserve.controller.controller import Controller
from rlserve.controller.preparation.prepare import Preparation, prepare
from rlserve.controller.preparation.supervised import SupervisedPreparation, prepare_supervised, with_steps
from rlserve.controller.ray_ports import ray_ports
from rlserve.controller.saving import roles_at
from rlserve.controller.setup import RunSetup, run_workload
from rlserve.controller.shared_pool import share_event
from rlserve.errors import RlserveError
from rlserve.json_log import ProcessFields
from rlserve.launch.connect.factory import create_launcher
from rlserve.launch.connect.shared import as_given, first_slots, join_others
from rlserve.launch.signals import StopRequested, StopSignals
from rlserve.launch.signals import exit_code as signal_exit_code
from rlserve.pool.discovery import discover_cluster
from rlserve.pool.gangs import check_gangs, cut_gangs
from rlserve.pool.slots import at_most
from rlserve.tasks import is_builtin
from rlserve.tracking.cost.budget import check_priced
from rlserve.tracking.cost.prices import Prices, read_prices
from rlserve.tracking.events import RunEvent, StageEvent, recorded_time_s
from rlserve.tracking.logs import log_to
from rlserve.tracking.owner import owned
from rlserve.tracking.progress import Progress, ProgressState
from rlserve.tracking.report import build_report
from rlserve.tracking.run_folder import RunFolder, default_run_name, write_atomically
from rlserve.tracking.summary import print_summary, read_summary, write_summary
from rlserve.tracking.tracker import Tracker, create_tracker

logger = logging.getLogger(__name__)

EXIT_FAILED = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class RunStart:
    """What the first second of a run has decided and begun."""

    loaded: LoadedConfig
    resume: Path | None
    """Folder of the run to go on with; None begins a new one."""
    may_begin: bool
    """Whether that run begins where it has no checkpoint yet."""
    started_s: float
    """``time.monotonic()`` when the command began."""
    console: Console
    progress: Progress
    signals: StopSignals
    worker_python: str | None
    """What Ray starts workers with, in place of Python."""


def run(start: RunStart) -> int:
    """Run a configuration; returns the exit code.

    Raises:
        RlserveError: why the run could not start or go on.
        StopRequested: a signal came before training began.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    folder = _open_folder(start.loaded, start.resume)
    log_format = start.loaded.config.tracking.log_format
    with log_to(folder.log_file, start.console, log_format, _log_fields(start.progress)), owned(folder.path):
        saved = _newest_saved(folder, start)
        folder.make_latest()
        folder.write_config(to_yaml(start.loaded.config))
        for remark in start.loaded.remarks:
            logger.warning("%s", remark)
        return _run_in(folder, start, saved)


def _log_fields(progress: Progress) -> ProcessFields:
    """What the controller's log says of it: how far the run is."""
    fields = ProcessFields(role="controller")

    def of_now() -> dict[str, int | None]:
        state = progress.state
        return {} if state is None else {"step": state.step, "weight_version": state.weight_version}

    fields.live = of_now
    return fields


def _run_in(folder: RunFolder, start: RunStart, saved: SavedRun | None) -> int:
    """Run in a folder that is ours, and sum up."""
    # What was done after the last checkpoint is lost, but its time has passed: records never go back in time.
    already_s = max(saved.content["elapsed_s"], recorded_time_s(folder)) if saved else 0.0
    config, console, progress = start.loaded.config, start.console, start.progress
    clock = RunClock(started=start.started_s, already_s=already_s)
    exit_code, reason = EXIT_FAILED, None
    try:
        tracker = create_tracker(
            config.tracking,
            folder,
            as_plain(config),
            resumed_step=saved.num_steps + 1 if saved else 0 if start.resume else None,
            model_name=config.model.path,
        )
        num_steps = saved.num_steps if saved else 0
        now_s = clock.now()
        begin = RunEvent(
            time_s=now_s,
            begin_s=already_s,
            resumed=saved is not None,
            step=num_steps,
            begun_at_s=None if config.pool.is_paced else time.time() - (now_s - already_s),
        )
        tracker.record(begin)
        try:
            exit_code = _train(start, folder, tracker, clock, saved)
        except RlserveError as error:
            exit_code, reason = error.exit_code, str(error)
            raise
        except StopRequested as stop:
            exit_code = signal_exit_code(stop.number)
            raise
        except (OSError, MemoryError) as error:  # the machine's: a line here, the traceback in the log file
            reason = f"{type(error).__name__}: {error}"
            logger.error("the run failed: %s: %s", type(error).__name__, error, exc_info=error)
        finally:
            progress.show_status("writing the records")
            tracker.record(StageEvent(time_s=clock.now(), stage="ending"))
            tracker.close(exit_code, reason)
            if config.tracking.report and folder.summary_file.exists():
                progress.show_status("making the report")
                _report(folder)
    finally:
        progress.close()
    summary = read_summary(folder)
    if summary is not None and config.tracking.progress != "none":
        print_summary(console, summary, folder)
        if exit_code and checkpoints(folder.checkpoints):
            console.print(
                f"stopped; go on with: rlserve launch --resume {shlex.quote(str(folder.path))}", soft_wrap=True
            )
    return exit_code


def _newest_saved(folder: RunFolder, start: RunStart) -> SavedRun | None:
    """What to go on from; None where the run begins.

    Raises:
        UserError: the run that should go on has no whole checkpoint.
    """
    begins = start.resume is None or (start.may_begin and not checkpoints(folder.checkpoints))
    return None if begins else read_run(newest_checkpoint(folder.checkpoints))


def _report(folder: RunFolder) -> None:
    """Build the report; a disk that is full cannot take it, and is said so."""
    try:
        build_report(folder)
    except OSError as error:
        logger.warning("the report cannot be written: %s", error, exc_info=error)


def _open_folder(loaded: LoadedConfig, resume: Path | None) -> RunFolder:
    """The folder of the run: that of the one to go on with, or a new one, numbered where the user gave no name."""
    if resume is not None:
        return RunFolder.open(resume)
    output_dir, name = Path(loaded.config.output_dir), loaded.config.name
    if name is not None:
        return RunFolder.create(output_dir, name)
    return RunFolder.create_numbered(output_dir, default_run_name(loaded.source.stem, datetime.now()))


def _train(start: RunStart, folder: RunFolder, tracker: Tracker, clock: RunClock, saved: SavedRun | None) -> int:
    config, progress = start.loaded.config, start.progress
    prices = _keep_prices(config.cost.prices, folder)

    def show(status: str) -> None:
        progress.update(
            ProgressState(name=folder.name, status=status, step=0, num_steps=config.num_steps, elapsed_s=clock.now())
        )

    launcher, member = create_launcher(config.launch), None
    try:
        if is_builtin(config.model.path) and is_builtin(config.data.path):
            launcher.begin(config.pool)  # at once: there is nothing of the user's that could be wrong
        preparation: Preparation | SupervisedPreparation
        if config.algorithm.needs.rollouts:
            preparation = prepare(config, show, reward_log=folder.path / "logs" / "reward.log")
        else:
            preparation = prepare_supervised(config, show)
            config = with_steps(config, preparation.source)
        if saved is not None:  # other data are refused before anything is started
            preparation.source.restore(saved.content["source"])
        workload = run_workload(config)
        show("starting Ray")
        groups = at_most(launcher.connect(config.pool), config.scale_out.max_slots)
        gang_size = config.rollout.engine.tensor_parallel_size
        nodes = discover_cluster() if config.launch.kind == "cluster" else None
        member = join_others(config, folder.name, show)
        if member is not None and nodes is not None:
            tracker.record(share_event(member.allowance, clock.now()))  # from now on they are the run's
            groups, nodes = first_slots(config.pool, groups, discover_cluster(), member)
        cut = cut_gangs(groups, gang_size, nodes=nodes)
        check_gangs(cut, gang_size)
        config = as_given(config, cut.gangs)
        slots = Counter(slot.type.name for gang in cut.gangs for slot in gang.slots)
        check_priced(config.cost.budget, prices, slots)
        check_hourly(config, prices, slots)
        if nodes is not None and (config.pool.slots == "auto" or cut.num_left_over):  # only now is it known
            for remark in remarks_on_split(config, cut):
                logger.warning("%s", remark)
        roles = first_roles(config, cut.gangs)
        setup = RunSetup(
            config=config,
            preparation=preparation,
            gangs=cut.gangs,
            roles=roles if saved is None else roles_at(saved, config.pool, roles),
            folder=folder,
            tracker=tracker,
            progress=progress,
            clock=clock,
            saved=saved,
            worker_python=start.worker_python,
            workload=workload,
            prices=prices,
            sharing=member,
        )
        return asyncio.run(_control(setup, start.signals))
    finally:
        if member is not None:
            member.close()
        launcher.close()


def _keep_prices(source: str | None, folder: RunFolder) -> Prices | None:
    """The user's prices, with a copy in the folder of the run.

    Raises:
        UserError: they cannot be read.
    """
    if source is None:
        return None
    prices = read_prices(Path(source))
    write_atomically(folder.prices_file, Path(source).read_text(encoding="utf-8"))
    return prices


def _summarise(folder: RunFolder, controller: Controller) -> None:
    try:
        write_summary(folder, controller.summary())
    except OSError as error:
        logger.warning("the summary cannot be written: %s", error, exc_info=error)


async def _control(setup: RunSetup, signals: StopSignals) -> int:
    """Run the controller with signals turned into a stop.

    The summary is written however the run ends: what was done before an error counts too.
    """
    controller = build_controller(setup, ray_ports(setup))
    loop = asyncio.get_running_loop()
    with signals.handed_to(lambda: loop.call_soon_threadsafe(controller.request_stop)):
        try:
            await controller.run()
        finally:
            _summarise(setup.folder, controller)
    received = signals.received
    # Without a signal, its slots were taken away.
    return signal_exit_code(received or signal.SIGTERM) if controller.stopped_early else 0
