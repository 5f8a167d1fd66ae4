"""Find what a ``builtin:NAME`` stands for, making it first if it is not in the cache.

An entry's folder is named after the task and a hash of everything that shapes it, so a changed recipe makes a new
entry and never meets an old one. An entry is made under a lock in a ``.partial`` folder and then renamed, so it is
wholly there or not at all, and of several processes at once one makes it and the others wait.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from rlserve.cache_folder import cache_folder
from rlserve.errors import DeadlineExceededError, ModelError, UserError
from rlserve.tasks.base import Split, Task
from rlserve.tasks.registry import TASKS

logger = logging.getLogger(__name__)

PREFIX = "builtin:"
DEADLINE_S = 1800.0
"""Of making an entry, and of waiting while another process makes it."""
POLL_S = 0.2
DATA_SEED = 0
NUM_RECORDS: dict[Split, int] = {"train": 8192, "held_out": 512}


def is_builtin(path: str) -> bool:
    """Whether ``path`` has the form ``builtin:NAME``."""
    return path.startswith(PREFIX)


def resolve_model(path: str, *, cache_dir: Path | None = None, log: Callable[[str], None] = logger.info) -> Path:
    """The Hugging Face folder of ``builtin:NAME``; the first call warm-starts it in a process of its own.

    Args:
        path: ``builtin:NAME``.
        cache_dir: where entries live; None takes ``$RLSERVE_CACHE`` or ``~/.cache/rlserve``.
        log: receives the lines of progress.

    Raises:
        UserError: there is no such task.
        ModelError: the warm start failed.
        DeadlineExceededError: the warm start, here or in another process, did not end in time.
    """
    task = find_task(path)
    return cached_folder(
        cache_dir or cache_folder(),
        f"{task.name}-model-{content_hash(task)}",
        lambda folder: run_warm_start(task, folder, log),
    )


def find_made_model(path: str) -> Path | None:
    """The folder of ``builtin:NAME`` if the model has been made, else None.

    Raises:
        UserError: there is no such task.
    """
    task = find_task(path)
    folder = cache_folder() / f"{task.name}-model-{content_hash(task)}"
    return folder if folder.is_dir() else None


def resolve_data(path: str, *, cache_dir: Path | None = None) -> tuple[Path, Path]:
    """The JSONL files of ``builtin:NAME``, training and held-out, with the columns ``prompt`` and ``answer``.

    Raises:
        UserError: there is no such task.
        DeadlineExceededError: another process held the lock for too long.
    """
    task = find_task(path)
    folder = cached_folder(
        cache_dir or cache_folder(),
        f"{task.name}-data-{content_hash(task)}",
        lambda folder: write_records(task, folder),
    )
    return folder / "train.jsonl", folder / "held_out.jsonl"


def find_task(path: str) -> Task:
    """The task that ``builtin:NAME`` names."""
    assert is_builtin(path)
    name = path.removeprefix(PREFIX)
    if name not in TASKS:
        known = ", ".join(PREFIX + known_name for known_name in sorted(TASKS))
        raise UserError(f"there is no built-in task {path!r}; there is {known}")
    return TASKS[name]


def content_hash(task: Task) -> str:
    """Sixteen hex digits over the recipe, the record counts and the source of this folder."""
    digest = hashlib.sha256(json.dumps([asdict(task.recipe), DATA_SEED, NUM_RECORDS], sort_keys=True).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def cached_folder(cache_dir: Path, name: str, make: Callable[[Path], None]) -> Path:
    """``cache_dir / name``; where it is not there, ``make`` fills an empty folder that becomes it."""
    folder = cache_dir / name
    if folder.is_dir():
        return folder
    cache_dir.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(cache_dir / f"{name}.lock"):
        if not folder.is_dir():
            partial = cache_dir / f"{name}.partial"
            shutil.rmtree(partial, ignore_errors=True)  # a maker that was killed leaves one
            partial.mkdir()
            make(partial)
            partial.rename(folder)
    return folder


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Hold the lock on ``path``, which the kernel gives back if this process dies."""
    deadline = time.monotonic() + DEADLINE_S
    with path.open("w") as file:
        while not try_lock(file.fileno()):
            if time.monotonic() > deadline:
                raise DeadlineExceededError(f"another process has held {path} for {DEADLINE_S:.0f} s")
            time.sleep(POLL_S)
        yield


def try_lock(file_descriptor: int) -> bool:
    """Take the lock if it is free."""
    try:
        fcntl.flock(file_descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def run_warm_start(task: Task, folder: Path, log: Callable[[str], None]) -> None:
    """Warm-start ``task`` into ``folder`` in a child process, which ends with this call whatever happens."""
    command = [sys.executable, "-m", "rlserve.tasks.warm_start", task.name, "--output", str(folder)]
    command += ["--parent", str(os.getpid())]
    # Threads that wait by spinning take the cores from those that compute, tens of seconds on a busy machine.
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    lines: list[str] = []
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        watchdog = threading.Timer(DEADLINE_S, process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line.rstrip())
                log(lines[-1])
            process.wait()
        finally:
            timed_out = not watchdog.is_alive()
            watchdog.cancel()
            process.kill()
    if timed_out:
        raise DeadlineExceededError(f"the warm start of {PREFIX}{task.name} did not end in {DEADLINE_S:.0f} s")
    if process.returncode != 0:
        raise ModelError(f"the warm start of {PREFIX}{task.name} failed:\n" + "\n".join(lines[-20:]))


def write_records(task: Task, folder: Path) -> None:
    """Write ``train.jsonl`` and ``held_out.jsonl``."""
    for split, count in NUM_RECORDS.items():
        records = task.records(seed=DATA_SEED, split=split, count=count)
        lines = [json.dumps(asdict(record)) + "\n" for record in records]
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
