"""Who writes to the folder of a run: one process at a time.

::

    owner.json   host, process and its start; touched every few seconds while the process lives

    nobody, or an owner that is gone ──claim──► ours ──release──► nobody
    an owner that lives ──claim──► UserError, which names it

Whether a process of this machine lives is asked of the system. Of one elsewhere, on another machine or in a container
of its own, only the age of its last sign of life is known.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

import psutil

from rlserve.errors import UserError

logger = logging.getLogger(__name__)

OWNER_FILE = "owner.json"
HEARTBEAT_S = 10.0
SILENT_AFTER_S = 120.0
"""An owner elsewhere counts as gone when it gave no sign of life for so long."""
_START_TOLERANCE_S = 2.0
"""The start of a process is reckoned from the start of the machine, which may be corrected a little."""
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@dataclass(frozen=True, kw_only=True)
class Owner:
    """A process, told from all others: of other machines and containers, and later ones of its number."""

    host: str
    """For people."""
    system: str
    """Where the process's number means this process: one start of one machine, one container."""
    process_id: int
    started_s: float
    """When it started, in seconds since 1970."""

    def __str__(self) -> str:
        return f"process {self.process_id} on {self.host}"


def this_process() -> Owner:
    """Ourselves."""
    host, boot, container = socket.gethostname(), Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    system = [host, boot.read_text().strip() if boot.exists() else "", os.readlink(container) if boot.exists() else ""]
    return Owner(host=host, system=" ".join(system), process_id=os.getpid(), started_s=psutil.Process().create_time())


def process_start(process_id: int) -> float | None:
    """When a process of this machine started; None if there is none, or one that has ended."""
    try:
        process = psutil.Process(process_id)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None


def lives(owner: Owner, *, age_s: float, here: Owner, start_of: Callable[[int], float | None] = process_start) -> bool:
    """Whether an owner is still there; ``age_s`` is that of its last sign of life, ``here`` a process of ours."""
    if owner.system != here.system:
        return age_s < SILENT_AFTER_S
    started_s = start_of(owner.process_id)
    return started_s is not None and abs(started_s - owner.started_s) < _START_TOLERANCE_S


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Be the one process that writes to the folder of a run.

    Raises:
        UserError: another one does, or the folder cannot be written to.
    """
    owner, stop = this_process(), threading.Event()
    claim(folder, owner)
    heart = threading.Thread(
        target=keep_alive, args=(folder, owner, lambda: stop.wait(HEARTBEAT_S)), name="heartbeat", daemon=True
    )
    heart.start()
    try:
        yield
    finally:
        stop.set()
        heart.join()
        release(folder, owner)


def claim(folder: Path, owner: Owner, *, now: Callable[[], float] = time.time) -> None:
    """Make ``owner`` the owner of a folder that has none, or one that is gone.

    Raises:
        UserError: see :func:`owned`.
    """
    try:
        with _exclusive(folder / OWNER_FILE) as file:
            other, age_s = _read(file), max(now() - os.fstat(file.fileno()).st_mtime, 0.0)
            if other is not None and lives(other, age_s=age_s, here=owner):
                raise UserError(
                    f"{folder} is in use: {other} writes to it, its last sign of life is {age_s:.0f} s old; stop it "
                    f"first, or begin a run of another name"
                )
            if other is not None:
                logger.warning("%s, which wrote to this run, is gone; last sign of life %.0f s ago", other, age_s)
            _write(file, json.dumps(asdict(owner)) + "\n")
    except OSError as error:
        raise UserError(f"{folder} cannot be written to: {error.strerror}") from error


def find_owner(folder: Path, *, now: Callable[[], float] = time.time) -> tuple[Owner, bool] | None:
    """Whoever wrote to a folder last and has not let go of it, and whether it lives; None where there is none."""
    path = folder / OWNER_FILE
    try:
        with path.open(encoding="utf-8") as file:
            owner, age_s = _read(file), max(now() - os.fstat(file.fileno()).st_mtime, 0.0)
    except FileNotFoundError:
        return None
    return None if owner is None else (owner, lives(owner, age_s=age_s, here=this_process()))


def keep_alive(folder: Path, owner: Owner, wait: Callable[[], bool]) -> None:
    """Give a sign of life each time that ``wait`` returns False, until it returns True or the folder is another's."""
    path = folder / OWNER_FILE
    while not wait():
        try:
            with path.open(encoding="utf-8") as file:
                if (other := _read(file)) != owner:
                    logger.error("%s has taken over %s, taking us for gone", other or "another process", folder)
                    return
            os.utime(path)
        except OSError as error:  # a file system that is away for a while: the next one may come through
            logger.warning("no sign of life could be left in %s: %s", path, error.strerror)


def release(folder: Path, owner: Owner) -> None:
    """Let go of a folder, if it is still ours; who cannot is recognised as gone later."""
    if not folder.exists():
        return
    try:
        with _exclusive(folder / OWNER_FILE) as file:
            if _read(file) in (owner, None):
                (folder / OWNER_FILE).unlink()
    except OSError as error:
        logger.warning("%s cannot be let go of: %s", folder, error.strerror)


def wait_until_gone(folder: Path, *, wait: Callable[[], object] = lambda: time.sleep(1.0)) -> None:
    """Wait for an owner elsewhere that gives no more signs of life to count as gone.

    Returns also where it still gives them, and at once where it is a living process of this machine.
    """
    for _ in range(int(SILENT_AFTER_S + 2 * HEARTBEAT_S)):
        found = find_owner(folder)
        if found is None or not found[1] or found[0].system == this_process().system:
            return
        wait()


@contextmanager
def _exclusive(path: Path) -> Iterator[TextIO]:
    """The file at ``path``, made if need be, with nobody else in here at the same time."""
    while True:
        with path.open("a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in _NO_LOCKS:  # without them two claims in one moment are not told apart
                    raise
            if _is_at(file, path):
                yield file
                return


def _is_at(file: TextIO, path: Path) -> bool:
    """Whether an open file still lies at ``path``: who released it has removed it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _read(file: TextIO) -> Owner | None:
    file.seek(0)
    try:
        return Owner(**json.load(file))
    except (ValueError, TypeError):  # empty, as just made, or cut off by a full disk: nobody
        return None


def _write(file: TextIO, text: str) -> None:
    file.truncate(0)
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
