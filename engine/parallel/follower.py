"""A rank other than 0: it computes its part of the model until rank 0 ends.

``python -m rlserve.engine.parallel.follower`` is what an engine starts for each of them (``rank_processes.py``).
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from pathlib import Path

import torch

from rlserve.distributed.base import RankPlace
from rlserve.engine.config import EngineConfig
from rlserve.engine.models.factory import read_model_spec
from rlserve.engine.models.shard import Shard
from rlserve.engine.parallel.base import RankGroup
from rlserve.engine.parallel.distributed import join_ranks
from rlserve.engine.parallel.sharded_runner import FollowingRunner
from rlserve.errors import RlserveError

logger = logging.getLogger(__name__)


def follow(model_path: str | Path, config: EngineConfig, group: RankGroup) -> None:
    """Compute one rank's part of the model of an ``Engine`` with the same arguments on rank 0. Returns when that is
    closed.

    Raises:
        UserError: a size of the model does not divide by the number of ranks.
        WorkerFailedError: rank 0 or another rank is lost.
    """
    folder = Path(model_path)
    try:
        FollowingRunner(Shard.of(read_model_spec(folder), group.rank, group.num_ranks), config, group).follow(folder)
    finally:
        group.close()


def main(task: str) -> int:
    """Follow as ``task`` says, in JSON; the status to exit with. The first line of the standard input is the secret of
    the rendezvous. The input stays open as long as rank 0's process lives: it may die while nobody is connected to it
    yet, or while a GPU waits for it."""
    job = json.loads(task)
    config, place = EngineConfig(**job["config"]), RankPlace(**job["place"], secret=_first_line_of_input())
    threading.Thread(target=_end_with_input, daemon=True).start()
    logging.basicConfig(format=f"%(asctime)s %(levelname)s rank {place.rank}: %(message)s")
    torch.set_num_threads(job["num_threads"])
    if job["gpu"] is not None:
        torch.cuda.set_device(job["gpu"])
    try:
        follow(job["model_path"], config, join_ranks(place, config))
    except RlserveError as error:
        logger.error("%s", error)
        return error.exit_code
    return 0


def _first_line_of_input() -> str:
    line = b""
    while not line.endswith(b"\n"):
        read = os.read(sys.stdin.fileno(), 1)
        if not read:
            os._exit(1)
        line += read
    return line.decode().strip()


def _end_with_input() -> None:
    while os.read(sys.stdin.fileno(), 1):  # not through the buffer, whose lock the end of the process would wait for
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
