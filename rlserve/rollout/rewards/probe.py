"""Trying a reward function before a run starts, in a process of its own: a hang or a crash is found there too.

::

    RewardProbe ──config──► process: imports the function ──None or a RewardError──►
                ──sample──►          scores it            ──Trial──►                  … until it is closed
"""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

from rlserve.errors import RewardError
from rlserve.rollout.config import RewardConfig
from rlserve.rollout.rewards.base import RewardSample, Score
from rlserve.rollout.rewards.factory import create_function
from rlserve.rollout.rewards.output import redirect_output

logger = logging.getLogger(__name__)

_IMPORT_TIMEOUT_S = 120.0
_NUM_LAST_LINES = 5
_PR_SET_PDEATHSIG = 1
_HOW = "tried before the run, with the reference answer as the response"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """How scoring one sample went."""

    score: Score
    duration_s: float
    is_async: bool
    """Whether the answers to a prompt are scored all at once."""


class RewardProbe:
    """A process that has the reward function, as long as the context lasts."""

    def __init__(self, config: RewardConfig, log_path: Path | None) -> None:
        """What the function prints goes to ``log_path``; None shows it only where the process ends."""
        assert config.function is not None, "only functions are tried: a model is as good as its files"
        self._config = config
        self._name = config.function
        self._folder = tempfile.TemporaryDirectory(prefix="rlserve-probe-")
        self._log_path = log_path or Path(self._folder.name) / "reward.log"
        self._connection, theirs = Pipe()
        command = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import serve; serve({theirs.fileno()})"
        self._process = subprocess.Popen(
            [sys.executable, "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
        )
        theirs.close()

    def __enter__(self) -> RewardProbe:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._connection.close()
        self._folder.cleanup()

    def load(self) -> None:
        """Import the function.

        Raises:
            RewardError: it cannot be found or imported, or importing it hangs or ends the process.
        """
        what = f"reward.function={self._name}: while it was imported,"
        self._connection.send((self._config, self._log_path))
        error = self._receive(_IMPORT_TIMEOUT_S, what, f"took longer than {_IMPORT_TIMEOUT_S:g} s")
        if error is not None:
            raise error

    def try_on(self, samples: Sequence[RewardSample], *, samples_per_prompt: int) -> Score | None:
        """Score the samples one by one until one of them can be scored; returns its score, None without samples.

        A function that fails on some is only reported: rows differ, and a run stands a share of failures.

        Raises:
            RewardError: it fails on all of them, hangs past ``reward.timeout_s`` or ends the process.
        """
        errors: list[str] = []
        for sample in samples:
            trial = self._try(sample)
            if trial.score.error is None:
                if errors:
                    logger.warning("%s (%s; on prompt %s it did not fail)", errors[0], _HOW, sample.id)
                self._compare_with_deadline(trial, sample, samples_per_prompt)
                return trial.score
            errors.append(trial.score.error)
        if errors:
            others = f", and on {len(errors) - 1} other held-out prompts" if len(errors) > 1 else ""
            raise RewardError(f"{errors[0]} ({_HOW}{others})")
        return None

    def _try(self, sample: RewardSample) -> Trial:
        deadline_s = self._config.timeout_s
        self._connection.send(sample)
        what = f"reward {self._name} ({_HOW}) on prompt {sample.id}:"
        trial: Trial = self._receive(deadline_s, what, f"no answer within reward.timeout_s={deadline_s:g}")
        return trial

    def _compare_with_deadline(self, trial: Trial, sample: RewardSample, samples_per_prompt: int) -> None:
        """Say early that a group cannot be scored in time. The first call may be slow for reasons of its own."""
        deadline_s = self._config.timeout_s
        if trial.is_async or trial.duration_s * samples_per_prompt <= deadline_s:
            return
        again_s = self._try(sample).duration_s
        if again_s * samples_per_prompt > deadline_s:
            logger.warning(
                "reward %s took %.2g s for one answer: the %d answers to a prompt would take %.3g s, more than "
                "reward.timeout_s=%g; make the function async, or raise reward.timeout_s",
                self._name,
                again_s,
                samples_per_prompt,
                again_s * samples_per_prompt,
                deadline_s,
            )

    def _receive(self, timeout_s: float, what: str, late: str) -> Any:
        if not self._connection.poll(timeout_s):
            raise RewardError(f"{what} {late}{self._last_words()}")
        try:
            return self._connection.recv()
        except EOFError:
            code = self._process.wait()
            how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise RewardError(f"{what} its process {how}{self._last_words()}") from None

    def _last_words(self) -> str:
        if not self._log_path.is_file():
            return ""
        lines = self._log_path.read_text(encoding="utf-8", errors="replace").splitlines()[-_NUM_LAST_LINES:]
        return "; the last that it printed:\n" + "\n".join(lines) if lines else ""


def serve(file_descriptor: int) -> None:
    """What runs in the other process: answer each message until there are no more."""
    if sys.platform == "linux":  # a function that hangs must not outlive a run that is killed
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    connection: Connection[Any, Any] = Connection(file_descriptor)
    config, log_path = connection.recv()
    redirect_output(log_path, name="probe")
    faulthandler.enable(file=2)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # as in a scorer without GPUs of its own
    try:
        reward = create_function(config)
    except RewardError as error:
        connection.send(error)
        return
    connection.send(None)
    while True:
        try:
            sample = connection.recv()
        except EOFError:
            return
        start = time.monotonic()
        (score,) = reward.score([sample])
        duration_s = time.monotonic() - start
        connection.send(Trial(score=score, duration_s=duration_s, is_async=reward.is_async))
