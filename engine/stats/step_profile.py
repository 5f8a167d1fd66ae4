"""What the engine's thread does in its steps, as ``torch.profiler`` sees it: a trace that Perfetto shows.

::

    start ──► step ──► step ──► … so many, or stop ──► write
              └─ ranges: schedule, compute, draw, collect
"""

from __future__ import annotations

import gzip
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

STEP_RANGE = "engine step"
"""With its number behind it, the name of a step in the trace."""
_NOTHING = nullcontext()


def profiled(name: str) -> AbstractContextManager[object]:
    """A range of this name in the trace of a thread that is profiled; elsewhere nothing, and next to no time."""
    return record_function(name) if torch._C._autograd._profiler_enabled() else _NOTHING


class StepProfile:
    """Begins and ends in the engine's thread, since a profile is of the thread that begins it, and of what that has a
    GPU do.

    Args:
        max_steps: after which it ends by itself.
    """

    def __init__(self, max_steps: int) -> None:
        self.num_steps = 0
        self.ended = threading.Event()
        self._max_steps = max_steps
        self._profile: profile | None = None

    @staticmethod
    def warm_up() -> None:
        """Have the profiler's libraries loaded, by any thread: the first start takes a second."""
        os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # it would write to stderr, past logging
        with _new_profile():
            return

    def start(self) -> None:
        """Begin, before the next step."""
        self._profile = _new_profile()
        self._profile.start()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around each step."""
        if self.ended.is_set():
            yield
            return
        with record_function(f"{STEP_RANGE} {self.num_steps}"):
            yield
        self.num_steps += 1
        if self.num_steps == self._max_steps:
            self.stop()

    def stop(self) -> None:
        """End. Nothing where it has ended already."""
        if not self.ended.is_set() and self._profile is not None:
            self._profile.stop()
            self.ended.set()

    def write(self, path: Path) -> int:
        """Write what was seen as a compressed trace, which is there whole or not at all. By any thread, once it has
        ended.

        Returns:
            Bytes of the file.

        Raises:
            OSError: it cannot be written.
        """
        assert self._profile is not None
        assert self.ended.is_set()
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(f"{path.parent} is no folder that can be written to")
        plain, compressed = path.with_name(f".{path.name}.json"), path.with_name(f".{path.name}")
        try:
            self._profile.export_chrome_trace(str(plain))
            if not _is_whole(plain):  # which the profiler does not tell
                raise OSError(f"there is no room for a trace in {path.parent}")
            with plain.open("rb") as source, gzip.open(compressed, "wb", compresslevel=3) as target:
                shutil.copyfileobj(source, target)
            os.replace(compressed, path)
        finally:
            plain.unlink(missing_ok=True)
            compressed.unlink(missing_ok=True)
        return path.stat().st_size


def _is_whole(trace: Path) -> bool:
    with trace.open("rb") as file:
        file.seek(-min(16, trace.stat().st_size), os.SEEK_END)
        return file.read().rstrip().endswith(b"}")


def _new_profile() -> profile:
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    return profile(activities=activities, acc_events=False)
