"""Worker processes by fork, from one that has imported everything heavy once.

::

    driver ──starts──► server.py: imports torch, transformers, engine and trainer, then waits at a socket
    Ray ──starts──► client.py in place of Python ──arguments, environment, standard streams──► server.py
                                                                                                 │ forks
                                                                               Ray's worker ◄────┘

A node of a cluster has a server of its own where it was started by ``python -m rlserve.launch.ray_node``: the label
``LABEL`` of the node tells the driver which, so a node's server imports while the node joins.

A worker costs about an eighth of the processor time that its imports take, which is most of a start where workers
share a few cores. Only for CPU slots: a process may not be forked once it has touched a GPU. The server never
imports Ray, whose threads do not survive a fork.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from rlserve.pool.threads import thread_environment
from rlserve.processes import end_all
from rlserve.trainers.backends.config import DeepSpeedTrainerConfig, TrainerConfig

ENGINE_MODULES = ("torch", "rlserve.engine.core.engine", "rlserve.pool.roles.rollout", "rlserve.weights.packing")
"""What is heavy in a worker that rolls out: a third of what one takes that trains."""
_TRAINER_MODULES = (
    "transformers.models.qwen3.modeling_qwen3",  # what it imports is most of what every family imports
    "rlserve.trainers.factory",
)
WORKER_MODULES = (*ENGINE_MODULES, *_TRAINER_MODULES)
"""All that is heavy in a worker, and nothing that starts a thread or imports Ray."""
PREFIX = "rlserve-fork-"
"""Of the name of the socket's folder."""
LABEL = "rlserve-fork-server"
"""Of a node of a Ray cluster, whose value is a server's ``label``."""
_FOLDER = Path("/tmp")
"""Short: a socket's path is limited. The same on all nodes, so that a name says where it is."""
_STARTER = "python"
_LABEL_VALUE = re.compile(rf"({PREFIX}\w+)\.(\d+)")


def worker_modules(trainer: TrainerConfig) -> tuple[str, ...]:
    """``WORKER_MODULES``, and what this trainer needs besides."""
    return (*ENGINE_MODULES, *trainer_modules(trainer))


def trainer_modules(trainer: TrainerConfig) -> tuple[str, ...]:
    """What is heavy in this trainer."""
    peft = ("peft",) if trainer.lora.is_on else ()
    deepspeed = ("rlserve.trainers.backends.deepspeed.backend",) if isinstance(trainer, DeepSpeedTrainerConfig) else ()
    return (*_TRAINER_MODULES, *peft, *deepspeed)


def worker_python_of(labels: Mapping[str, str], num_threads: int) -> str | None:
    """What Ray runs in place of Python on a node with these labels, for a worker with so many threads; None where the
    node has no server for such workers."""
    found = _LABEL_VALUE.fullmatch(labels.get(LABEL, ""))
    return str(_FOLDER / found[1] / _STARTER) if found and int(found[2]) == num_threads else None


class ForkServer:
    """The server, as who starts it sees it. It ends with that process, and its workers end with it."""

    def __init__(
        self, num_threads: int, modules: Sequence[str] = WORKER_MODULES, *, compile_kernels: bool = True
    ) -> None:
        """``num_threads`` is that of every worker: OpenMP reads it once, when it is loaded."""
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=_FOLDER))
        self._num_threads = num_threads
        self._socket = self.folder / "socket"
        starter = self.folder / _STARTER
        starter.write_text(f'#!/bin/sh\nexec {self.worker_python} "$@"\n', encoding="utf-8")
        starter.chmod(0o700)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(self._socket))
            server.listen()  # here, so that clients can wait before the server is up
            self._process = self._start(server, thread_environment(num_threads), modules, compile_kernels)

    def _start(
        self, server: socket.socket, environment: Mapping[str, str], modules: Sequence[str], compile_kernels: bool
    ) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "rlserve.pool.fork_server.server"]
        command += [str(server.fileno()), str(self._socket), str(os.getpid()), *modules]
        return subprocess.Popen(
            [*command, "--compile-kernels"] if compile_kernels else command,
            env={**os.environ, **environment},
            pass_fds=[server.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )

    @property
    def worker_python(self) -> str:
        """What Ray runs in place of Python to start a worker: a command, for the shell."""
        client = Path(__file__).with_name("client.py")
        return shlex.join([sys.executable, "-S", "-E", str(client), str(self._socket)])

    @property
    def label(self) -> str:
        """What :func:`worker_python_of` reads: the folder's name, and the number of threads."""
        return f"{self.folder.name}.{self._num_threads}"

    def close(self) -> None:
        """End the server, and with it all that comes from it: workers, and a compiler at work."""
        is_there = self._process.poll() is None
        others = psutil.Process(self._process.pid).children(recursive=True) if is_there else []
        self._process.kill()
        self._process.wait()
        end_all(others)
        shutil.rmtree(self.folder, ignore_errors=True)
