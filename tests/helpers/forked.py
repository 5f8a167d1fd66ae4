"""Processes of tests by fork, from one that has imported once what each of them would import for seconds."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing import forkserver
from typing import Any
from unittest import mock

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "rlserve.trainers.factory",
        "rlserve.weights.transports.factory",
        "transformers.models.qwen3.modeling_qwen3",  # what it imports is most of what every family imports
    ]
)
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
"""Read once, when the server loads torch, and so that of all processes."""


class ForkedProcess:
    """Runs ``serve(pipe, *arguments)`` with one thread, and ends with this process; what it sends are results, or
    errors."""

    answer_s = 240.0
    """Far above what a result takes."""

    def __init__(self, serve: Callable[..., None], *arguments: Any) -> None:
        with mock.patch.dict(os.environ, _ENVIRONMENT):
            forkserver.ensure_running()
        self._pipe, far_end = _CONTEXT.Pipe()
        self.process = _CONTEXT.Process(target=serve, args=(far_end, *arguments), daemon=True)
        self.process.start()
        far_end.close()

    def send(self, message: Any) -> None:
        """What ``serve`` receives next."""
        self._pipe.send(message)

    def result(self) -> Any:
        """The next one; an error is raised."""
        assert self._pipe.poll(self.answer_s), "the process does not answer"
        found = self._pipe.recv()
        if isinstance(found, Exception):
            raise found
        return found

    def kill(self) -> None:
        """The process is gone."""
        self.process.kill()
        self.process.join()
