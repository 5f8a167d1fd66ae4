"""Processes of tests by fork, from one that has imported once what each of them would import for seconds."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

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


def start_forked(serve: Callable[..., None], *arguments: Any) -> tuple[BaseProcess, Connection]:
    """Run ``serve(pipe, *arguments)`` in a process with one thread, which ends with this one; returns it and the other
    end of the pipe."""
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    try:
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    pipe, far_end = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=serve, args=(far_end, *arguments), daemon=True)
    process.start()
    far_end.close()
    return process, pipe
