"""A process on this machine that has the reward, without Ray: a hang or a crash is an error here, and no more.

::

    RewardProcess ──config──►  process: makes the reward ──None or a RewardError──►
                  ──samples──►          scores them      ──Scored──►                  … until it is closed
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rlserve.errors import RewardError
from rlserve.rollout.config import RewardConfig
from rlserve.rollout.rewards.base import RewardSample, Score
from rlserve.rollout.rewards.factory import create_reward
from rlserve.rollout.rewards.output import redirect_output

_START_TIMEOUT_S = 120.0
_NUM_LAST_LINES = 5
_MAX_LAST_BYTES = 4096
_PR_SET_PDEATHSIG = 1
_STANDARD_ERROR = 2


@dataclass(frozen=True, kw_only=True)
class Scored:
    """How scoring samples together went."""

    scores: list[Score]
    duration_s: float
    at_once: bool
    """Whether the samples were scored side by side."""


class RewardProcess:
    """Has the reward from ``load`` to ``close``, and scores for one caller at a time."""

    def __init__(self, config: RewardConfig, log_path: Path | None, *, name: str = "probe") -> None:
        """What the reward prints goes to ``log_path``, behind ``name``; None lets it go to standard error."""
        self._config = config
        self._log_path = log_path
        self._name = name
        self._connection, theirs = Pipe()
        _limit_sending(self._connection, config.timeout_s)
        command = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import serve; serve({theirs.fileno()})"
        output = _STANDARD_ERROR if log_path is None else subprocess.DEVNULL
        self._process = subprocess.Popen(
            [sys.executable, "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(theirs.fileno(),),
            env=_environment(config),
            process_group=0,  # a signal to the group of the run's process is meant for that one
        )
        theirs.close()

    def load(self) -> None:
        """Make the reward.

        Raises:
            RewardError: it cannot be found or loaded, or loading it hangs or ends the process.
        """
        self._connection.send((self._config, self._log_path, self._name))
        error = self._receive(
            _START_TIMEOUT_S,
            f"{self._config.title}: while it was imported,",
            f"took longer than {_START_TIMEOUT_S:g} s",
        )
        if error is not None:
            raise error

    def score(self, samples: Sequence[RewardSample], what: str) -> Scored:
        """Score them together, within ``reward.timeout_s``. ``what`` begins the message of an error.

        Raises:
            RewardError: the reward hangs past its deadline or ends the process, which must then be closed.
        """
        deadline_s = self._config.timeout_s
        try:
            self._connection.send(samples)
        except BlockingIOError:  # it is stopped, and there are more than a pipe holds
            raise RewardError(f"{what} not taken within reward.timeout_s={deadline_s:g}{self._last_words()}") from None
        except OSError:
            raise self._ended(what) from None
        scored: Scored = self._receive(deadline_s, what, f"no answer within reward.timeout_s={deadline_s:g}")
        return scored

    def close(self) -> None:
        """End the process at once. Whoever waits for it gets an error."""
        self._process.kill()
        self._process.wait()

    def _receive(self, timeout_s: float, what: str, late: str) -> Any:
        if not self._connection.poll(timeout_s):
            raise RewardError(f"{what} {late}{self._last_words()}")
        try:
            return self._connection.recv()
        except (EOFError, ConnectionResetError):
            raise self._ended(what) from None

    def _ended(self, what: str) -> RewardError:
        code = self._process.wait()
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return RewardError(f"{what} its process {how}{self._last_words()}")

    def _last_words(self) -> str:
        if self._log_path is None or not self._log_path.is_file():
            return ""
        with self._log_path.open("rb") as file:
            file.seek(max(0, self._log_path.stat().st_size - _MAX_LAST_BYTES))
            lines = file.read().decode(errors="replace").splitlines()[-_NUM_LAST_LINES:]
        return "; the last that it printed:\n" + "\n".join(lines) if lines else ""


def _limit_sending(connection: Connection[Any, Any], timeout_s: float) -> None:
    """Of a pipe whose other end may not be read from."""
    seconds, rest = divmod(timeout_s, 1)
    with socket.socket(fileno=os.dup(connection.fileno())) as end:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(seconds), int(rest * 1e6)))


def _environment(config: RewardConfig) -> dict[str, str]:
    """Without a model there is one thread of PyTorch or NumPy unless the user says otherwise: the processors have other
    work."""
    return dict(os.environ) if config.has_model else {"OMP_NUM_THREADS": "1", **os.environ}


def serve(file_descriptor: int) -> None:
    """What runs in the other process: answer each message until there are no more."""
    if sys.platform == "linux":  # a reward that hangs must not outlive a run that is killed
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started this process ends it
    connection: Connection[Any, Any] = Connection(file_descriptor)
    config, log_path, name = connection.recv()
    if log_path is not None:
        redirect_output(log_path, name=name)
    faulthandler.enable(file=_STANDARD_ERROR)
    if config.num_gpus == 0:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # as in a scorer without GPUs of its own
    try:
        reward = create_reward(config)
    except RewardError as error:
        connection.send(error)
        return
    connection.send(None)
    while True:
        try:
            samples = connection.recv()
        except EOFError:
            return
        start = time.monotonic()
        scores = reward.score(samples)
        connection.send(Scored(scores=scores, duration_s=time.monotonic() - start, at_once=reward.scores_at_once))
