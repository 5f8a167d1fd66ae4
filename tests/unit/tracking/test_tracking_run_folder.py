from __future__ import annotations

import errno
import json
import os
import shlex
from datetime import datetime
from pathlib import Path
from threading import Barrier, Thread

import pytest

import rlserve
from rlserve.errors import UserError
from rlserve.tracking.run_folder import RunFolder, default_run_name, write_atomically


def test_create_makes_the_folder_with_versions(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "runs", "first")
    versions = json.loads(folder.versions_file.read_text())
    assert versions["rlserve"] == rlserve.__version__
    assert {"python", "torch", "transformers", "ray", "git_commit", "platform", "cpu_count"} <= versions.keys()
    assert folder.checkpoints.is_dir()


def test_latest_follows_the_newest_run_and_then_the_one_resumed(tmp_path: Path) -> None:
    first, second = RunFolder.create(tmp_path, "first"), RunFolder.create(tmp_path, "second")
    latest = tmp_path / "latest"
    first.make_latest()
    second.make_latest()
    assert latest.readlink() == Path("second")
    first.make_latest()
    assert latest.readlink() == Path("first"), "the link is relative, so that the folder can be moved"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "latest", "second"]


def test_a_latest_of_the_users_own_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "latest").mkdir()
    (tmp_path / "latest/mine").touch()
    RunFolder.create(tmp_path, "run").make_latest()
    assert f"{tmp_path}/latest does not point at this run: it is no link of ours" in caplog.text
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("*")) == ["latest", "run"]
    assert (tmp_path / "latest/mine").exists()


def test_a_file_system_without_links_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    RunFolder.create(tmp_path, "run").make_latest()
    assert "latest does not point at this run: Operation not permitted" in caplog.text


def test_runs_without_a_name_take_the_next_number_also_at_the_same_moment(tmp_path: Path) -> None:
    folders: list[str] = []
    start = Barrier(6)

    def begin() -> None:
        start.wait()
        folders.append(RunFolder.create_numbered(tmp_path, "a").name)

    threads = [Thread(target=begin) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(folders) == ["a", "a-2", "a-3", "a-4", "a-5", "a-6"]


def test_a_name_that_is_taken_is_refused_with_a_remedy(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, "taken")
    RunFolder.create(tmp_path, "taken (1)")
    for name in ("taken", "taken (1)"):
        with pytest.raises(
            UserError, match=r" exists already: choose another name=…, delete it, or continue"
        ) as caught:
            RunFolder.create(tmp_path, name)
        path = shlex.split(str(caught.value).partition("rlserve resume ")[2])[0]
        assert RunFolder.open(Path(path)).path == tmp_path / name


def test_an_output_dir_that_is_a_file_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="choose another output_dir"):
        RunFolder.create(tmp_path / "file", "run")


def test_open_follows_latest_and_refuses_other_folders(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "run")
    folder.make_latest()
    assert RunFolder.open(tmp_path / "latest").path == folder.path.resolve()
    with pytest.raises(UserError, match="is not the folder of a run"):
        RunFolder.open(tmp_path)


def test_write_atomically_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    for text in ("old", "new"):
        write_atomically(tmp_path / "file", text)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "new")]


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/file'"):
        write_atomically(tmp_path / "file", "text")
    with pytest.raises(UserError, match="runs/r cannot be written to \\(No space left on device\\): make room there"):
        RunFolder.create(tmp_path / "runs", "r")
    assert [path.name for path in tmp_path.rglob("*")] == ["runs"], "the name is free for another try"


def test_sync_command_names_every_offline_run(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "with space")
    assert folder.wandb_sync_command() is None
    for name in ("offline-run-1-abc", "offline-run-2-abc"):
        (folder.path / "wandb" / name).mkdir(parents=True)
    command = folder.wandb_sync_command()
    assert command is not None
    assert command.startswith("wandb sync '")
    assert "offline-run-1-abc" in command
    assert "offline-run-2-abc" in command


def test_default_name_is_configuration_and_time() -> None:
    assert default_run_name("rlhf", datetime(2026, 3, 4, 5, 6, 7)) == "rlhf-20260304-050607"
