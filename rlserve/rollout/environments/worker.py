"""A process of this machine that holds environments, as the controller sees it.

::

    EnvironmentWorker ──config──► process: finds the class ──None or an EnvironmentFailedError──►
                      ──Call────►          many at once    ──Answer, in any order──►              … until it is closed
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import subprocess
import sys
from pathlib import Path

from rlserve.errors import EnvironmentFailedError, WorkerFailedError, WorkerLostError
from rlserve.rollout.environments.base import EnvironmentTask, ModelTurn
from rlserve.rollout.environments.config import EnvironmentConfig
from rlserve.rollout.environments.host import BLOCKED
from rlserve.rollout.environments.messages import Action, Answer, Call, packed, receive_from

_START_TIMEOUT_S = 120.0
_PATIENCE = 3.0
"""Times the deadline of a call, after which a process that does not even say so is taken for lost."""
_LEAST_PATIENCE_S = 10.0
_GOODBYE_S = 1.0
_STANDARD_ERROR = 2


class EnvironmentWorker:
    """One process; a new one is started by the first call after the last was lost."""

    def __init__(self, config: EnvironmentConfig, *, name: str, log_path: Path | None) -> None:
        """What environments print goes to ``log_path``, behind ``name``; None lets it go to standard error."""
        self._config = config
        self._name = name
        self._log_path = log_path
        self._process: subprocess.Popen[bytes] | None = None
        self._starting = asyncio.Lock()
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._call_ids = itertools.count()
        self.num_sessions = 0
        """Environments that it is asked to hold."""
        self.incarnation = 0
        """Grows with every process."""

    async def start(self) -> None:
        """Start the process and find the class; only where none is running.

        Raises:
            EnvironmentFailedError: the class cannot be found or loaded.
            WorkerFailedError: the process did not come up.
        """
        async with self._starting:
            if self._writer is None:
                await self._start()

    async def call(self, session: int, action: Action, argument: EnvironmentTask | ModelTurn | None = None) -> Answer:
        """Let an environment of the process that runs now do something.

        Raises:
            WorkerLostError: the process was lost, with all that it held.
        """
        if self._writer is None:
            raise WorkerLostError(f"{self._name}: its process was lost")
        call = Call(id=next(self._call_ids), session=session, action=action, argument=argument)
        answer = self._waiting[call.id] = asyncio.get_running_loop().create_future()
        try:
            self._writer.write(packed(call))
            return await asyncio.wait_for(answer, max(_LEAST_PATIENCE_S, self._config.timeout_s * _PATIENCE))
        except TimeoutError:
            self._stop_reading()
            self._lose("does not answer")
            raise WorkerLostError(f"{self._name}: its process does not answer") from None
        finally:
            self._waiting.pop(call.id, None)

    def close(self) -> None:
        """End the process at once, if there is one."""
        self._stop_reading()
        self._lose("was closed")

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()

    async def _start(self) -> None:
        ours, theirs = socket.socketpair()
        environment = {"OMP_NUM_THREADS": "1", **os.environ}
        module = "rlserve.rollout.environments.process"
        number, we = theirs.fileno(), os.getpid()
        command = f"import sys; sys.path[:] = {sys.path!r}; from {module} import serve; serve({number}, {we})"
        output = _STANDARD_ERROR if self._log_path is None else subprocess.DEVNULL
        self._process = subprocess.Popen(
            [sys.executable, "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(number,),
            env=environment,
            process_group=0,  # a signal to the group of the run's process is meant for that one
        )
        theirs.close()
        reader, writer = await asyncio.open_connection(sock=ours)
        try:
            await self._load(reader, writer)
        except BaseException:
            self._end(writer)
            raise
        self._writer = writer
        self.incarnation += 1
        self._reading = asyncio.create_task(self._read(reader))

    async def _load(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Let a process that has just been started find the class."""
        writer.write(packed((self._config, self._log_path, self._name)))
        place = f"environment.name={self._config.name}: while it was imported, its process"
        try:
            error = await asyncio.wait_for(receive_from(reader), _START_TIMEOUT_S)
        except TimeoutError:
            raise WorkerFailedError(f"{place} gave no answer for {_START_TIMEOUT_S:g} s") from None
        except (asyncio.IncompleteReadError, ConnectionError):
            raise EnvironmentFailedError(f"{place} ended (exit code {self._exit_code()})") from None
        if error is not None:
            raise error

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                answer: Answer = await receive_from(reader)
                waiting = self._waiting.get(answer.call_id)
                if waiting is not None and not waiting.done():
                    waiting.set_result(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            self._lose("was ended, since an environment blocked it" if self._exit_code() == BLOCKED else "ended")

    def _exit_code(self) -> int | None:
        """Of a process whose end of the connection is closed, so that it is gone in a moment."""
        assert self._process is not None, "started"
        try:
            return self._process.wait(_GOODBYE_S)
        except subprocess.TimeoutExpired:
            return None

    def _lose(self, how: str) -> None:
        writer, self._writer = self._writer, None
        if writer is None:
            return
        code = self._end(writer)
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(WorkerLostError(f"{self._name}: its process {how} (exit code {code})"))

    def _end(self, writer: asyncio.StreamWriter) -> int:
        assert self._process is not None, "started"
        writer.close()
        self._process.kill()
        return self._process.wait()
