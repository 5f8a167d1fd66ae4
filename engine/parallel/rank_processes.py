"""The processes of the ranks that an engine starts for itself, on its own machine."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from rlserve.distributed.base import RankPlace
from rlserve.engine.config import EngineConfig
from rlserve.errors import UserError, WorkerFailedError

_POLL_INTERVAL_S = 0.01
_END_S = 20.0
"""How long a process may take to end."""


class RankProcesses:
    """Ranks 1 and on. They end when rank 0 does, in whatever way."""

    def __init__(self, model_path: Path, config: EngineConfig, leader: RankPlace) -> None:
        num_ranks = leader.num_ranks
        gpus = other_gpus(config, num_ranks - 1)
        self._processes = []
        for rank in range(1, num_ranks):
            place = {"rank": rank, "num_ranks": num_ranks, "host": leader.host, "port": leader.port}
            task = {
                "model_path": str(model_path),
                "config": asdict(config),
                "place": place,
                "num_threads": torch.get_num_threads(),
                "gpu": gpus[rank - 1],
            }
            command = [sys.executable, "-m", "rlserve.engine.parallel.follower", json.dumps(task)]
            # A process group of its own: Ctrl-C is for rank 0, which ends the others. The pipe closes when rank 0 dies.
            process = subprocess.Popen(command, process_group=0, stdin=subprocess.PIPE, bufsize=0)
            self._processes.append(process)
            assert process.stdin is not None
            # Not in the command, which everybody on the machine can read.
            with contextlib.suppress(BrokenPipeError):  # it has ended already, which ``check`` tells
                process.stdin.write(f"{leader.secret}\n".encode())

    def check(self) -> None:
        """Raise :class:`WorkerFailedError` if one has ended."""
        for rank, process in enumerate(self._processes, start=1):
            if process.poll() is not None:
                raise WorkerFailedError(
                    f"tensor parallelism: rank {rank} ended with status {process.returncode}; its output says why"
                )

    def wait(self) -> None:
        """Wait until all have ended, and kill those that do not."""
        deadline = time.monotonic() + _END_S
        while any(process.poll() is None for process in self._processes) and time.monotonic() < deadline:
            time.sleep(_POLL_INTERVAL_S)
        self.kill()

    def kill(self) -> None:
        """End all that have not ended."""
        for process in self._processes:
            process.kill()
            process.communicate()


def other_gpus(config: EngineConfig, number: int) -> Sequence[int | None]:
    """GPUs that this process sees beside its own, for so many others; None for each on a CPU.

    Raises:
        UserError: there are not as many.
    """
    if config.device == "cpu" or not torch.cuda.is_available():
        return [None] * number
    others = [gpu for gpu in range(torch.cuda.device_count()) if gpu != torch.cuda.current_device()]
    if len(others) < number:
        raise UserError(
            f"tensor_parallel_size={number + 1} needs as many GPUs, and this process sees {len(others) + 1}; "
            "set CUDA_VISIBLE_DEVICES or a smaller tensor_parallel_size"
        )
    return others[:number]
