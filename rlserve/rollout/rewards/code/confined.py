"""A confined program as the scorer sees it: started, waited for within a deadline, ended with all that it started."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import psutil

from rlserve.errors import RewardError
from rlserve.rollout.rewards.code import confinement
from rlserve.rollout.rewards.code.limits import End, Outcome, limits_of
from rlserve.rollout.rewards.config import CodeRewardConfig

_PIECE_BYTES = 1 << 16
_SYSTEM_FOLDERS = ("/usr", "/lib", "/lib64", "/bin")
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


@dataclass(frozen=True, kw_only=True)
class Program:
    """What is run."""

    files: Mapping[str, str]
    """Name in its working folder to text."""
    arguments: Sequence[str]
    """Of the Python interpreter: the name of a file, and what it is given."""
    stdin: str = ""
    passed_fds: Sequence[int] = field(default=())
    """File descriptors that it has, under the same numbers."""


class ConfinedProgram:
    """Runs from its making on, and is gone at the end of the context with all that it started."""

    def __init__(self, program: Program, config: CodeRewardConfig, *, isolated: bool) -> None:
        self._config = config
        self._isolated = isolated
        with contextlib.ExitStack() as failing:
            self._folder = tempfile.mkdtemp(prefix="rlserve-code-")
            failing.callback(shutil.rmtree, self._folder)
            self._status, status_of_child = os.pipe()
            failing.callback(os.close, self._status)
            try:
                self._process = _start((status_of_child, *program.passed_fds))
            finally:
                os.close(status_of_child)
            failing.pop_all()
        self._end_s = time.monotonic() + config.wall_time_s
        what = {
            "files": dict(program.files),
            "arguments": list(program.arguments),
            "stdin": program.stdin,
            "limits": limits_of(config),
            "environment": _ENVIRONMENT,
            "isolated": isolated,
            "visible": _visible(),
            "root": self._folder,
        }
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as stdin:  # it is dead: found out below
            stdin.write(json.dumps(what).encode())

    def __enter__(self) -> ConfinedProgram:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._kill()
        os.close(self._status)
        assert self._process.stdout is not None
        self._process.stdout.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def wait(self) -> Outcome:
        """Until it has ended, or is ended for one of its limits.

        Raises:
            RewardError: it was never started, since it could not be confined.
        """
        end, output, status = self._read()
        self._kill()
        if end is not End.EXIT:
            return Outcome(end=end, output=output)
        how = json.loads(status or b"{}")
        if "refused" in how:
            raise RewardError(f"a program could not be shut off: {how['refused']}")
        return Outcome(end=end, exit_code=how.get("exit_code"), signal=how.get("signal"), output=output)

    def _read(self) -> tuple[End, bytes, bytes]:
        """How it ended, what it printed, and what is said of it."""
        assert self._process.stdout is not None
        stdout = self._process.stdout.fileno()
        texts = {stdout: bytearray(), self._status: bytearray()}
        with selectors.DefaultSelector() as selector:
            for descriptor in texts:
                selector.register(descriptor, selectors.EVENT_READ)
            while self._status in selector.get_map():
                left_s = self._end_s - time.monotonic()
                if left_s <= 0:
                    return End.WALL_TIME, bytes(texts[stdout]), b""
                for key, _ in selector.select(left_s):
                    self._take(selector, key.fd, texts[key.fd])
                if len(texts[stdout]) > self._config.output_bytes:
                    return End.OUTPUT, bytes(texts[stdout][: self._config.output_bytes]), b""
        # All that it had printed is in the pipe; what it left running and holds the other end is not waited for.
        os.set_blocking(stdout, False)
        with contextlib.suppress(BlockingIOError):
            while len(texts[stdout]) <= self._config.output_bytes and (piece := os.read(stdout, _PIECE_BYTES)):
                texts[stdout] += piece
        end = End.OUTPUT if len(texts[stdout]) > self._config.output_bytes else End.EXIT
        return end, bytes(texts[stdout]), bytes(texts[self._status])

    def _take(self, selector: selectors.BaseSelector, descriptor: int, text: bytearray) -> None:
        piece = os.read(descriptor, _PIECE_BYTES)
        text += piece
        if not piece:
            selector.unregister(descriptor)

    def _kill(self) -> None:
        """The confining process takes its namespace along. Without one, whoever left the process group is looked up."""
        if not self._isolated:
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(self._process.pid).children(recursive=True):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        child.kill()
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _start(descriptors: Sequence[int]) -> subprocess.Popen[bytes]:
    """The confining process; the first descriptor is for what it has to say, the others are the program's."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", confinement.__file__, *map(str, descriptors)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pass_fds=descriptors,
        env={},
        cwd="/",
        start_new_session=True,
    )


@functools.cache
def _visible() -> tuple[str, ...]:
    """Folders that the interpreter needs, none inside another."""
    interpreter = (sys.base_prefix, sys.prefix, sysconfig.get_path("stdlib"), str(Path(sys.executable).parent))
    real = (os.path.realpath(sys.executable), *(os.path.realpath(path) for path in interpreter))
    kept: list[str] = list(_SYSTEM_FOLDERS)
    for path in sorted({*interpreter, *real}, key=len):
        if not any(path == folder or path.startswith(f"{folder}/") for folder in kept):
            kept.append(path)
    return tuple(kept)
