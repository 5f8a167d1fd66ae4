"""What a user asks a running run for by hand: requests and answers as files in the run's folder.

::

    rlserve move ──ID.request.json──► the run removes it, does it ──ID.answer.json──► rlserve move removes it

Files, since the folder is what both sides share, whichever machine each of them is on. They are small JSON objects; the
folder is its owner's alone, and what anybody else put there is not read. Whoever removes the request decides: the run,
that it is carried out, or the user who is tired of waiting, that it is not.
"""

from __future__ import annotations

import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from rlserve.errors import UserError
from rlserve.tracking.owner import find_owner
from rlserve.tracking.run_folder import RunFolder, write_atomically

logger = logging.getLogger(__name__)

Action = Literal["show", "move", "release"]
RoleName = Literal["train", "rollout"]

_REQUEST = ".request.json"
_ANSWER = ".answer.json"
_MAX_BYTES = 4096
_LOOK_S = 0.1


@dataclass(frozen=True, kw_only=True)
class MoveRequest:
    """One wish of a user."""

    id: str
    action: Action
    gang_id: str | None = None
    """A gang, or one of its slots; None of ``show``, and of ``release`` for all."""
    role: RoleName | None = None
    """Of ``move``."""


@dataclass(frozen=True, kw_only=True)
class GangStatus:
    """How a gang stands."""

    id: str
    state: str
    """Its role, or what it is doing on the way to one."""
    num_slots: int
    type: str
    held_s: float | None = None
    """How long the split still stays as it was made by hand with this gang."""
    leaving: str | None = None
    """Why it is being emptied for good."""


@dataclass(frozen=True, kw_only=True)
class MoveAnswer:
    """What the run did."""

    outcome: Literal["done", "refused"]
    message: str
    gangs: tuple[GangStatus, ...] = ()


class MoveRequests:
    """The folder, as the run sees it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self) -> None:
        """Begin to listen: what lies there is of an earlier process, and of users who wait no more."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._folder.chmod(0o700)
        for path in self._folder.iterdir():
            path.unlink()

    def take(self) -> tuple[MoveRequest, ...]:
        """New requests, oldest first; what is none is removed, and said in the log."""
        found = sorted((path.stat(follow_symlinks=False).st_mtime, path) for path in self._present())
        requests = []
        for _, path in found:
            request = _read_request(path)
            path.unlink()
            if request is not None:
                requests.append(request)
        return tuple(requests)

    def answer(self, request: MoveRequest, answer: MoveAnswer) -> None:
        """Tell whoever asked."""
        write_atomically(self._folder / f"{request.id}{_ANSWER}", json.dumps(asdict(answer)))

    def _present(self) -> Iterator[Path]:
        for name in os.listdir(self._folder):
            if name.endswith(_REQUEST) and not name.startswith("."):  # else it is being written
                yield self._folder / name


def ask(
    folder: RunFolder,
    action: Action,
    gang_id: str | None = None,
    role: RoleName | None = None,
    *,
    timeout_s: float,
    sleep: Callable[[float], None] = time.sleep,
) -> MoveAnswer:
    """Ask a running run, and wait for what it says.

    Raises:
        UserError: it does not run, or does not answer within ``timeout_s``.
    """
    request = MoveRequest(id=uuid.uuid4().hex, action=action, gang_id=gang_id, role=role)
    path, answer = (folder.requests / f"{request.id}{end}" for end in (_REQUEST, _ANSWER))
    _check_running(folder)
    if not folder.requests.is_dir():
        raise UserError(f"{folder.name} is only starting: ask again when its workers are up")
    write_atomically(path, json.dumps(asdict(request)))
    give_up_s = time.monotonic() + timeout_s
    while not answer.exists():
        sleep(_LOOK_S)
        _check_running(folder)
        if time.monotonic() > give_up_s:
            raise UserError(_withdrawn(folder, path, timeout_s))
    found = json.loads(answer.read_text(encoding="utf-8"))
    answer.unlink()
    return MoveAnswer(**found | {"gangs": tuple(GangStatus(**gang) for gang in found["gangs"])})


def _check_running(folder: RunFolder) -> None:
    owner = find_owner(folder.path)
    if owner is None or not owner[1]:
        raise UserError(f"{folder.name} does not run: rlserve status {folder.name} says how it stands")


def _withdrawn(folder: RunFolder, path: Path, timeout_s: float) -> str:
    try:
        path.unlink()
    except FileNotFoundError:
        return f"{folder.name} is still at it after {timeout_s:g} s; rlserve move {folder.name} says how it stands"
    return f"{folder.name} did not look at the request for {timeout_s:g} s, and it was taken back: nothing was done"


def _read_request(path: Path) -> MoveRequest | None:
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as error:
        logger.warning("%s is no request: %s", path, error.strerror)
        return None
    with os.fdopen(file, "rb") as stream:
        if os.fstat(file).st_uid not in (os.geteuid(), 0):
            logger.warning("%s is of another user and is not read", path)
            return None
        text = stream.read(_MAX_BYTES + 1)
    if len(text) > _MAX_BYTES:
        logger.warning("%s is too long for a request", path)
        return None
    try:
        return _checked(json.loads(text))
    except (ValueError, TypeError, KeyError):
        logger.warning("%s is no request", path)
        return None


def _checked(found: dict[str, Any]) -> MoveRequest:
    request = MoveRequest(**found)
    if not request.id.isalnum() or request.action not in get_args(Action):
        raise ValueError(request)
    if request.action == "move" and (not isinstance(request.gang_id, str) or request.role not in get_args(RoleName)):
        raise ValueError(request)
    return request
