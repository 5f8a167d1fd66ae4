"""This machine: Ray embedded in this process, for this run alone."""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import ray

from rlserve.errors import PoolError
from rlserve.launch.connect.base import Launcher
from rlserve.launch.connect.folder_guard import FolderGuard
from rlserve.launch.connect.ray_folder import make_ray_folder, remove_ray_folder
from rlserve.launch.connect.ray_helpers import helpers_left_out
from rlserve.launch.connect.ray_logs import route_ray_logs
from rlserve.launch.signals import terminate_signal_kept
from rlserve.pool.config import PoolConfig, SlotGroupConfig
from rlserve.pool.discovery import accelerator_marker, discover_machine
from rlserve.pool.nvidia import VISIBLE_DEVICES, has_slices, visible_gpus
from rlserve.pool.slots import slot_groups
from rlserve.processes import end_all, processes_naming
from rlserve.roofline.accelerators import is_cpu

logger = logging.getLogger(__name__)

_END_GRACE_S = 1.0
_SLOW_START = "timed out during startup"
"""In the error of a Ray that was not up within the 30 seconds that it gives itself."""
_SYSTEM_CONFIG = {
    "prestart_worker_first_driver": False,  # our workers are none of Ray's idle ones
    "worker_niceness": 0,  # at Ray's 15, any other load starves workers until they are taken for lost
    # Nobody reads Ray's own metrics, nor its records of calls: this Ray has no dashboard.
    "enable_metrics_collection": False,
    "task_events_report_interval_ms": 0,
}


class LocalLauncher(Launcher):
    """Starts a Ray of its own, whatever else runs on the machine, with a resource for each type of CPU slot."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._guard: FolderGuard | None = None
        # Ray's processes end when the thread that started them does, so it lives until ``close``.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ray")
        self._started: Future[None] | None = None
        self._groups: tuple[SlotGroupConfig, ...] = ()

    def begin(self, config: PoolConfig) -> None:
        if self._started is not None:
            return
        cpu_only = config.slots != "auto" and all(is_cpu(group.type) for group in config.slots)
        self._groups = slot_groups(config, {} if cpu_only else discover_machine())
        self._folder = make_ray_folder()
        self._guard = FolderGuard(self._folder) if sys.platform == "linux" else None
        self._started = self._thread.submit(_start_ray, self._folder, self._groups)

    def connect(self, config: PoolConfig) -> tuple[SlotGroupConfig, ...]:
        self.begin(config)
        assert self._started is not None
        self._started.result()
        return self._groups

    def close(self) -> None:
        if self._started is None or self._folder is None:
            return
        self._started.exception()  # it must have ended, one way or the other
        if self._guard is not None:
            self._guard.close()
        processes = processes_naming(str(self._folder))
        ray.shutdown()
        self._thread.shutdown()
        end_all(processes, grace_s=_END_GRACE_S)  # Ray's helpers would take some seconds to notice
        remove_ray_folder(self._folder)


def _start_ray(folder: Path, groups: tuple[SlotGroupConfig, ...]) -> None:
    """Start Ray with what the slots need; once more where the machine was too busy to start it in Ray's 30 seconds.

    Raises:
        PoolError: it does not come up.
    """
    route_ray_logs()
    num_gpus = sum(group.count for group in groups if not is_cpu(group.type))
    num_shown = _show_gpus(groups) if num_gpus else 0
    try:
        try:
            _init_ray(folder, groups, num_shown)
        except Exception as error:
            if _SLOW_START not in str(error):
                raise
            logger.warning("Ray did not come up within its 30 seconds on this busy machine: it is started once more")
            ray.shutdown()
            end_all(processes_naming(str(folder)), grace_s=_END_GRACE_S)
            _init_ray(folder, groups, num_shown)
    except Exception as error:  # Ray raises bare ones as well
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise PoolError(
            f"Ray could not be started on this machine, with its files in {folder}: {reason.rstrip('.')}; "
            "free memory, disk space or ports, or set TMPDIR to another folder"
        ) from error


def _init_ray(folder: Path, groups: tuple[SlotGroupConfig, ...], num_gpus: int) -> None:
    with terminate_signal_kept(), helpers_left_out():
        ray.init(
            address="local",
            num_gpus=num_gpus,
            resources=_resources(groups),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
            configure_logging=False,
            _temp_dir=str(folder),
            _system_config=_SYSTEM_CONFIG,
        )


def _resources(groups: tuple[SlotGroupConfig, ...]) -> dict[str, float]:
    """What slots are pinned by: as many of each CPU type as there are slots, and a marker for each type of GPU."""
    cpu_slots: Counter[str] = Counter()
    for group in groups:
        if is_cpu(group.type):
            cpu_slots[group.type] += group.count
    markers = {accelerator_marker(group.type): 1.0 for group in groups if not is_cpu(group.type)}
    return {**{name: float(count) for name, count in cpu_slots.items()}, **markers}


def _show_gpus(groups: tuple[SlotGroupConfig, ...]) -> int:
    """The number of GPUs that Ray gets. Slices are named to it one by one, since by itself it sees whole GPUs."""
    gpus = visible_gpus()
    if has_slices(gpus):
        os.environ[VISIBLE_DEVICES] = ",".join(gpu.uuid for gpu in gpus)
    if len({group.type for group in groups if not is_cpu(group.type)}) > 1:
        logger.warning(
            "GPUs of several types in one machine: Ray does not tell them apart, so a slot may get one of another type"
        )
    return len(gpus)
