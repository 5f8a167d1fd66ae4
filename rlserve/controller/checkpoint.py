"""Checkpoints that are wholly there or not at all, and restore bit for bit.

A checkpoint is written to a temporary folder of its own; every file is synced and listed with its SHA-256 in a
manifest; the folder is renamed to ``step_NNNNNN`` and its parent synced. A folder under that name is therefore
complete, and a damaged one is found by its manifest: the newest good one is used, and the damaged ones are named.

::

    checkpoints/step_000020/
        policy/         the policy as a Hugging Face folder
        trainer/        policy, critic, optimizer: a file of each rank, and an index
        run.json        step, ledger, place in the data set, counters, roles
        manifest.json   SHA-256 of every file above
        held_out.json   the score of the last step, which is taken once its checkpoint is written
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlserve.errors import CheckpointError, UserError
from rlserve.tracking.run_folder import write_atomically

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
MANIFEST_FILE = "manifest.json"
SCORE_FILE = "held_out.json"
_NAME = re.compile(r"step_(\d{6,})")
_TEMPORARY_NAME = re.compile(r"\.writing_(step_\d{6,})_[0-9a-f]{8}")
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """What a run goes on from."""

    checkpoint: Path
    content: dict[str, Any]
    """Of ``run.json``, as the controller wrote it."""

    @property
    def num_steps(self) -> int:
        """Training steps done."""
        number: int = self.content["counters"]["num_steps"]
        return number


def checkpoint_name(step: int) -> str:
    """``step_000020``."""
    return f"step_{step:06d}"


async def save_checkpoint(
    parent: Path,
    step: int,
    write_model: Callable[[Path], Awaitable[None]],
    run: dict[str, Any],
    *,
    keep: int,
    keep_best: int = 0,
) -> Path:
    """Write one checkpoint, and remove all up to it but the newest ``keep`` and the ``keep_best`` with the best scores.

    ``write_model`` fills the given folder with the policy and the trainer's state. A whole one that exists for
    this step already is kept as it is; a damaged one, which the run did not go on from, is replaced. Files are read,
    synced and removed in a thread. An old checkpoint that cannot be removed is named in the log, and tried again at
    the next save.

    Raises:
        CheckpointError: it cannot be written; what was written of it is removed, older ones are untouched.
    """
    final = parent / checkpoint_name(step)
    # A name of its own, so that a writer who was given up, and wakes late, finds no folder that it could spoil.
    temporary = parent / f".writing_{final.name}_{secrets.token_hex(4)}"
    try:
        if await asyncio.to_thread(_make_room, temporary, final):
            return final
        await write_model(temporary)
        (temporary / RUN_FILE).write_text(json.dumps(run, indent=1))
        await asyncio.to_thread(_seal, temporary, final)
    except OSError as error:
        await asyncio.to_thread(shutil.rmtree, temporary, ignore_errors=True)
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"checkpoint {final} cannot be written: {error.strerror or error}") from error
    logger.info("checkpoint %s", final)
    await asyncio.to_thread(_remove_old, parent, step, keep, keep_best)
    return final


def _make_room(temporary: Path, final: Path) -> bool:
    """Make the temporary folder, unless the checkpoint is there and whole already, which is returned."""
    if is_whole(final):
        return True
    if final.exists():
        shutil.rmtree(final)
    temporary.mkdir(parents=True)
    return False


def _remove_old(parent: Path, newest_step: int, keep: int, keep_best: int) -> None:
    """Remove what lies before the ``keep`` newest up to ``newest_step``, but for the ``keep_best`` with the best
    scores, and what was half written before them. Later ones are none of this run's: it went on from an older one
    because they are damaged, and comes to them yet."""
    up_to_now = [path for path in checkpoints(parent) if (_step_of(path.name) or 0) <= newest_step]
    old_ones = up_to_now[:-keep]
    if keep_best:
        best = set(by_score(up_to_now)[-keep_best:])
        old_ones = [path for path in old_ones if path not in best]
    for old in (*old_ones, *_half_written(parent)):
        try:
            shutil.rmtree(old)
        except OSError as error:
            logger.warning(
                "old checkpoint %s cannot be removed, which is tried again at the next save: %s",
                old,
                error.strerror or error,
            )


def _half_written(parent: Path) -> list[Path]:
    """What a process that was ended, or a writer that was given up, has left."""
    return [path for path in sorted(parent.glob(".writing_step_*")) if _TEMPORARY_NAME.fullmatch(path.name)]


def _seal(temporary: Path, final: Path) -> None:
    files = sorted(path for path in temporary.rglob("*") if path.is_file())
    manifest = {str(path.relative_to(temporary)): _sha256(path) for path in files}
    (temporary / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1))
    for path in (*files, temporary / MANIFEST_FILE):
        _sync(path)
    for folder in {path.parent for path in files} | {temporary}:
        _sync(folder)
    temporary.rename(final)
    _sync(final.parent)


def checkpoints(parent: Path) -> list[Path]:
    """All finished checkpoints, in order of their steps. Folders of other names are somebody else's."""
    steps = {path: _step_of(path.name) for path in parent.glob("step_*") if path.is_dir()}
    return sorted((path for path, step in steps.items() if step is not None), key=lambda path: steps[path] or 0)


def _step_of(name: str) -> int | None:
    """The step of a checkpoint, by the name of its folder; None where the name is not ours."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match and checkpoint_name(int(match[1])) == name else None


def is_whole(checkpoint: Path) -> bool:
    """Whether every file is there with the bytes that were written."""
    manifest_path = checkpoint / MANIFEST_FILE
    if not manifest_path.is_file():
        return False
    try:
        manifest: dict[str, str] = json.loads(manifest_path.read_text())
    except ValueError:
        return False
    return all((checkpoint / name).is_file() and _sha256(checkpoint / name) == sha for name, sha in manifest.items())


def newest_checkpoint(parent: Path) -> Path:
    """The newest whole checkpoint; damaged ones are passed over and named in the log.

    Raises:
        UserError: there is none.
    """
    found = checkpoints(parent)
    for half_written in _half_written(parent):
        logger.warning("checkpoint %s was not written to its end, and is passed over", half_written)
    for checkpoint in reversed(found):
        if is_whole(checkpoint):
            return checkpoint
        logger.warning("checkpoint %s is damaged, falling back to the one before it", checkpoint)
    raise UserError(f"{parent} holds no whole checkpoint ({len(found)} damaged): there is nothing to resume from")


def held_out_score(checkpoint: Path) -> float | None:
    """That was taken after its step; None where none was, or the checkpoint is damaged."""
    noted = checkpoint / SCORE_FILE
    try:
        content = json.loads(noted.read_text()) if noted.is_file() else read_run(checkpoint).content
    except (OSError, ValueError):
        return None
    score: float | None = content.get("held_out")
    return score


def by_score(found: Sequence[Path]) -> list[Path]:
    """Those of some checkpoints, in order of their steps, that have a held-out score: the best last, of equal ones the
    newest."""
    scores = {path: score for path in found if (score := held_out_score(path)) is not None}
    return sorted(scores, key=lambda path: scores[path])


def note_score(checkpoint: Path, score: float) -> None:
    """Put the held-out score of its step beside a checkpoint that is written already.

    Raises:
        OSError: it cannot be written.
    """
    write_atomically(checkpoint / SCORE_FILE, json.dumps({"held_out": score}) + "\n")


def read_run(checkpoint: Path) -> SavedRun:
    """The run's own part of a checkpoint."""
    return SavedRun(checkpoint=checkpoint, content=json.loads((checkpoint / RUN_FILE).read_text()))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
