from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from rlserve.cache_folder import cache_folder
from rlserve.errors import ModelError, UserError
from rlserve.tasks import TASKS, is_builtin, resolve_data, resolve_model
from rlserve.tasks.addition import AdditionTask
from rlserve.tasks.cache import cached_folder, content_hash, run_warm_start


class RecordingMaker:
    """Makes an entry with one file, and remembers how often."""

    def __init__(self) -> None:
        self.num_calls = 0
        self.entered = threading.Event()
        self.may_finish = threading.Event()
        self.may_finish.set()

    def __call__(self, folder: Path) -> None:
        assert list(folder.iterdir()) == []
        self.num_calls += 1
        self.entered.set()
        assert self.may_finish.wait(timeout=60)
        (folder / "file").write_text("whole")


class FailingMaker(RecordingMaker):
    def __call__(self, folder: Path) -> None:
        (folder / "file").write_text("half")
        raise ModelError("broken on the way")


def test_an_entry_is_made_once(tmp_path: Path) -> None:
    make = RecordingMaker()
    first = cached_folder(tmp_path / "new", "entry", make)
    second = cached_folder(tmp_path / "new", "entry", make)
    assert first == second == tmp_path / "new" / "entry"
    assert (first / "file").read_text() == "whole"
    assert make.num_calls == 1


def test_an_entry_that_failed_is_not_there_and_is_made_afresh(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        cached_folder(tmp_path, "entry", FailingMaker())
    assert not (tmp_path / "entry").exists()
    assert (cached_folder(tmp_path, "entry", RecordingMaker()) / "file").read_text() == "whole"


def test_of_two_at_once_one_makes_it_and_both_get_it(tmp_path: Path) -> None:
    make = RecordingMaker()
    make.may_finish.clear()
    contents: list[str] = []

    def resolve() -> None:
        contents.append((cached_folder(tmp_path, "entry", make) / "file").read_text())

    first = threading.Thread(target=resolve)
    first.start()
    assert make.entered.wait(timeout=60)
    second = threading.Thread(target=resolve)
    second.start()
    make.may_finish.set()
    first.join(timeout=60)
    second.join(timeout=60)
    assert contents == ["whole", "whole"]
    assert make.num_calls == 1


def test_data_are_written_and_disjoint(tmp_path: Path) -> None:
    train_file, held_out_file = resolve_data("builtin:addition", cache_dir=tmp_path)
    train, held_out = (
        [json.loads(line) for line in file.read_text().splitlines()] for file in (train_file, held_out_file)
    )
    assert (len(train), len(held_out)) == (8192, 512)
    assert set(train[0]) == {"prompt", "answer"}
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in held_out}
    assert resolve_data("builtin:addition", cache_dir=tmp_path) == (train_file, held_out_file)


def test_an_unknown_task_is_named_with_those_there_are(tmp_path: Path) -> None:
    assert is_builtin("builtin:nothing")
    assert not is_builtin("some/folder")
    for resolve in (resolve_model, resolve_data):
        with pytest.raises(
            UserError, match="'builtin:nothing'; there is builtin:addition, builtin:countdown, builtin:digits"
        ):
            resolve("builtin:nothing", cache_dir=tmp_path)


def test_another_recipe_is_another_entry() -> None:
    changed = AdditionTask()
    changed.recipe = replace(changed.recipe, seed=1)
    assert content_hash(changed) != content_hash(TASKS["addition"])
    assert content_hash(AdditionTask()) == content_hash(TASKS["addition"])


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLSERVE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("RLSERVE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "rlserve"


def test_a_warm_start_that_fails_shows_its_last_words(tmp_path: Path) -> None:
    unknown = AdditionTask()
    unknown.name = "unknown"
    lines: list[str] = []
    with pytest.raises(ModelError, match="invalid choice: 'unknown'"):
        run_warm_start(unknown, tmp_path, lines.append)
    assert any("invalid choice" in line for line in lines)


def test_looking_up_a_task_imports_no_torch() -> None:
    code = "import sys, rlserve.tasks.addition; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
