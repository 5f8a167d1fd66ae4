"""A checkpoint is wholly there or not at all."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import shutil
import sys
import threading
from pathlib import Path
from typing import Any, cast

import pytest

from rlserve.controller.checkpoint import (
    MANIFEST_FILE,
    checkpoints,
    is_whole,
    newest_checkpoint,
    read_run,
    save_checkpoint,
)
from rlserve.controller.saving import save_tokenizer
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
    assert read_run(saved).content == {"step": 20}


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        save(tmp_path, step, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step_000010", "step_000015"]


@pytest.mark.parametrize(("keep_best", "kept"), [(0, [6, 7]), (1, [4, 6, 7]), (2, [2, 4, 6, 7]), (9, [1, 2, 4, 6, 7])])
def test_the_best_stay_beside_the_newest_and_one_without_a_score_is_none_of_them(
    tmp_path: Path, keep_best: int, kept: list[int]
) -> None:
    async def write_model(folder: Path) -> None:
        (folder / "weights").touch()

    for step, score in enumerate([0.1, 0.9, None, 0.9, 0.0, 0.5, None], start=1):
        run = {"step": step, "held_out": score}
        asyncio.run(save_checkpoint(tmp_path, step, write_model, run, keep=2, keep_best=keep_best))
        if step == 5:
            (tmp_path / "step_000005" / "run.json").write_text("{")  # damaged: it has no score
    assert [read_run(path).content["step"] for path in checkpoints(tmp_path)] == kept


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


def test_a_tokenizer_that_finds_the_disk_full_costs_the_checkpoint_and_not_the_run(tmp_path: Path) -> None:
    class Tokenizer:
        def save_pretrained(self, folder: Path) -> None:
            raise Exception("No space left on device (os error 28)")  # as its library does

    async def write_model(folder: Path) -> None:
        save_tokenizer(cast(Any, Tokenizer()), folder)

    with pytest.raises(
        CheckpointError, match=r"tokenizer cannot be written to .*step_000020_\w{8}: No space left on device"
    ):
        asyncio.run(save_checkpoint(tmp_path, 20, write_model, {}, keep=2))
    assert list(tmp_path.iterdir()) == []


def test_folders_of_other_names_are_left_alone(tmp_path: Path) -> None:
    others = ["step_best", "step_000001_backup", "step_1", "step_0000002", ".writing_mine", "notes"]
    for name in others:
        (tmp_path / name).mkdir()
    (tmp_path / "step_000000").write_text("a file")
    for step in (3, 4):
        save(tmp_path, step, keep=1)
    assert {path.name for path in tmp_path.iterdir()} == {*others, "step_000000", "step_000004"}
    assert [path.name for path in checkpoints(tmp_path)] == ["step_000004"]


def test_checkpoints_are_ordered_as_numbers(tmp_path: Path) -> None:
    for step in (999_999, 1_000_000):
        save(tmp_path, step)
    assert newest_checkpoint(tmp_path).name == "step_1000000"
    save(tmp_path, 1_000_001, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step_1000000", "step_1000001"]


def test_what_was_half_written_before_a_kill_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".writing_step_000007_0123abcd").mkdir()
    save(tmp_path, 8)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000008"]


def test_later_checkpoints_that_the_run_did_not_go_on_from_do_not_displace_the_one_just_saved(tmp_path: Path) -> None:
    for step in (3, 5):
        save(tmp_path, step)
    (tmp_path / "step_000005" / MANIFEST_FILE).unlink()
    save(tmp_path, 4, keep=1)
    assert newest_checkpoint(tmp_path).name == "step_000004"


def test_an_old_checkpoint_that_cannot_be_removed_is_named_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A file system that another process reads from says EBUSY; the new checkpoint is whole all the same."""
    threads: list[threading.Thread] = []
    rmtree = shutil.rmtree

    def busy(path: Path, **_: Any) -> None:
        threads.append(threading.current_thread())
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))

    save(tmp_path, 1)
    monkeypatch.setattr(shutil, "rmtree", busy)
    assert is_whole(save(tmp_path, 2, keep=1))
    assert f"{tmp_path / 'step_000001'} cannot be removed" in caplog.text
    assert "Device or resource busy" in caplog.text
    assert threads
    assert threading.main_thread() not in threads, "the loops of the run go on meanwhile"
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    save(tmp_path, 3, keep=1)
    assert [path.name for path in checkpoints(tmp_path)] == ["step_000003"]


class Killed(BaseException):
    """Not handled by anything, as SIGKILL is not."""


class Killer:
    """Ends what goes on before the n-th time that it changes anything below a folder."""

    def __init__(self) -> None:
        self._folder = ""
        self.num_left = 0
        sys.addaudithook(self._notice)  # stays to the end of the process, and does nothing unless armed

    def arm(self, folder: Path, number: int) -> None:
        self._folder, self.num_left = str(folder), number

    def disarm(self) -> None:
        self._folder = ""

    def _notice(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._folder or event not in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"):
            return
        if event in ("os.remove", "os.rmdir") or str(arguments[0]).startswith(self._folder):
            self.num_left -= 1
            if self.num_left == 0:
                raise Killed


killer = Killer()


def save_in_pieces(parent: Path, step: int, *, keep: int) -> Path:
    async def write_model(folder: Path) -> None:
        for name in ("policy", "trainer"):
            (folder / name).mkdir()
            for piece in (b"first", b"second"):
                with (folder / name / "weights").open("ab") as file:
                    file.write(piece)

    return asyncio.run(save_checkpoint(parent, step, write_model, {"step": step}, keep=keep))


def test_a_kill_between_any_two_changes_of_the_disk_leaves_the_last_good_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Before each file is opened, to be written or synced, and before each folder is made, renamed or removed."""
    found = []
    for number in itertools.count(1):
        parent = tmp_path / str(number)
        for step in (1, 2):
            save_in_pieces(parent, step, keep=2)
        caplog.clear()
        killer.arm(parent, number)
        try:
            save_in_pieces(parent, 3, keep=2)
        except Killed:
            pass
        finally:
            killer.disarm()
        if killer.num_left > 0:
            break
        good = newest_checkpoint(parent)
        found.append(read_run(good).content["step"])
        said = [f"{path} was not written to its end" in caplog.text for path in parent.glob(".writing_*")]
        assert all(said)
        assert good.name == f"step_{found[-1]:06d}"
        assert (good / "trainer" / "weights").read_bytes() == b"firstsecond"
        assert all(is_whole(save_in_pieces(parent, step, keep=2)) for step in (3, 4))
        assert [path.name for path in checkpoints(parent)] == ["step_000003", "step_000004"]
        assert not list(parent.glob(".writing_*"))
    assert len(found) > 20
    assert found == sorted(found), "once it is sealed it is the one to go on from"
    assert set(found) == {2, 3}
