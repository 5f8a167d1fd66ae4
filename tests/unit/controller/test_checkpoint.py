"""A checkpoint is wholly there or not at all."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

from rlserve.controller.checkpoint import (
    MANIFEST_FILE,
    checkpoints,
    is_whole,
    newest_checkpoint,
    read_run,
    save_checkpoint,
)
from rlserve.errors import CheckpointError, UserError


def save(parent: Path, step: int, *, keep: int = 2, content: bytes = b"weights") -> Path:
    async def write_model(folder: Path) -> None:
        (folder / "policy").mkdir()
        (folder / "policy" / "model.safetensors").write_bytes(content)

    return asyncio.run(save_checkpoint(parent, step, write_model, {"step": step}, keep=keep))


def test_saved_checkpoint_is_whole_and_reads_back(tmp_path: Path) -> None:
    saved = save(tmp_path, 20)
    assert saved.name == "step_000020"
    assert is_whole(saved)
    assert newest_checkpoint(tmp_path) == saved
    assert read_run(saved) == {"step": 20}


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        save(tmp_path, step, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step_000010", "step_000015"]


def test_writer_that_fails_leaves_no_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)

    async def write_model(folder: Path) -> None:
        (folder / "half.safetensors").write_bytes(b"half")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        asyncio.run(save_checkpoint(tmp_path, 2, write_model, {}, keep=2))
    assert newest_checkpoint(tmp_path).name == "step_000001"
    assert save(tmp_path, 2).name == "step_000002", "the half-written folder is not in the way"


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "manifest"])
def test_damaged_checkpoint_is_passed_over(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    victim = newest / "policy" / "model.safetensors"
    if damage == "flip":
        victim.write_bytes(b"weightz")
    elif damage == "truncate":
        victim.write_bytes(b"weig")
    elif damage == "delete":
        victim.unlink()
    else:
        (newest / MANIFEST_FILE).write_text("{")
    assert newest_checkpoint(tmp_path).name == "step_000001"
    assert str(newest) in caplog.text


def test_nothing_whole_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no whole checkpoint"):
        newest_checkpoint(tmp_path)


def test_same_step_is_saved_once(tmp_path: Path) -> None:
    first = save(tmp_path, 3, content=b"first")
    again = save(tmp_path, 3, content=b"second")
    assert first == again
    assert (first / "policy" / "model.safetensors").read_bytes() == b"first"


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    """The run fell back to the one before it and came to the step again."""
    saved = save(tmp_path, 20)
    (saved / "policy" / "model.safetensors").write_bytes(b"rubbish")
    assert not is_whole(saved)
    assert is_whole(save(tmp_path, 20))


def test_a_full_disk_is_an_error_that_names_the_checkpoint(tmp_path: Path) -> None:
    before = save(tmp_path, 10)

    async def write_model(folder: Path) -> None:
        (folder / "part").write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(CheckpointError, match=r"step_000020 cannot be written: No space left on device"):
        asyncio.run(save_checkpoint(tmp_path, 20, write_model, {}, keep=2))
    assert list(tmp_path.iterdir()) == [before]
    assert is_whole(before)
