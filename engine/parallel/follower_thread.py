"""A rank other than 0 in a process that does other things as well, such as a worker that may have to train later."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import torch

from rlserve.distributed.base import RankPlace
from rlserve.engine.config import EngineConfig
from rlserve.engine.parallel.distributed import join_ranks
from rlserve.engine.parallel.follower import follow
from rlserve.errors import RlserveError, WorkerFailedError

logger = logging.getLogger(__name__)


class FollowerThread:
    """Joins the ranks of ``place`` and follows rank 0 in a thread of its own, until rank 0 closes its engine or a rank
    is lost. The constructor returns at once: rank 0 joins meanwhile, with
    ``Engine(model_path, config, ranks=join_ranks(place, config))``.

    When rank 0 releases its memory, so does this rank; it keeps its place and waits for rank 0 to restore it.

    Args:
        model_path: the folder that rank 0's engine is given.
        config: that of rank 0's engine.
        place: this rank's place; not rank 0.
        timeout_s: how long to wait for the others to join, and later for each of them in a collective operation.
    """

    def __init__(
        self, model_path: str | Path, config: EngineConfig, place: RankPlace, *, timeout_s: float = 300.0
    ) -> None:
        assert place.rank > 0, "rank 0 has the engine"
        self._model_path = model_path
        self._config = config
        self._place = place
        self._timeout_s = timeout_s
        self._failure: RlserveError | None = None
        self._gpu = torch.cuda.current_device() if torch.cuda.is_available() and config.device != "cpu" else None
        self._thread = threading.Thread(target=self._run, name=f"engine rank {place.rank}", daemon=True)
        self._thread.start()

    @property
    def has_ended(self) -> bool:
        """Whether this rank has stopped following and freed its memory."""
        return not self._thread.is_alive()

    @property
    def failure(self) -> RlserveError | None:
        """Why this rank stopped, unless rank 0 closed its engine."""
        return self._failure

    def wait(self, timeout_s: float) -> None:
        """Wait until rank 0 has closed its engine.

        Raises:
            WorkerFailedError: a rank was lost, or this one still follows after ``timeout_s``.
            DeadlineExceededError: not all ranks joined in time.
            UserError: a size of the model does not divide by the number of ranks.
        """
        self._thread.join(timeout_s)
        if self._failure is not None:
            raise self._failure
        if not self.has_ended:
            raise WorkerFailedError(f"rank {self._place.rank} still follows rank 0 after {timeout_s:g} s")

    def _run(self) -> None:
        if self._gpu is not None:
            torch.cuda.set_device(self._gpu)  # each thread has a current GPU of its own
        try:
            follow(self._model_path, self._config, join_ranks(self._place, self._config, timeout_s=self._timeout_s))
        except RlserveError as error:
            logger.error("%s", error)
            self._failure = error
