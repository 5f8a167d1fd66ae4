"""``rlserve init``: a folder that works at once."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rlserve.cli import main
from rlserve.cli.init import recipes, write_task
from rlserve.config import load


def test_what_is_written_can_be_launched_from_any_folder(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", "my task: 'é'"]) == 0
    folder = place / "my task: 'é'"
    assert "rlserve launch" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "data.jsonl",
        "make_data.py",
        "reward.py",
        "run.yaml",
        "test_reward.py",
    ]
    monkeypatch.chdir("/")
    config = load(str(folder / "run.yaml"), discovered={}).config
    assert config.data.path == str(folder / "data.jsonl")
    assert config.reward.function == f"{folder / 'reward.py'}:score"
    rows = [json.loads(line) for line in (folder / "data.jsonl").read_text().splitlines()]
    assert len({row["prompt"] for row in rows}) == len(rows) > 1000
    for path in folder.iterdir():
        assert "$" not in path.read_text(), f"a placeholder is left in {path.name}"


def test_its_own_test_passes(place: Path) -> None:
    main(["init", "task"])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "task/test_reward.py"]
    result = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout
    assert "7 passed" in result.stdout


def test_a_folder_with_something_in_it_is_left_alone(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "task").mkdir()
    (place / "task/mine.txt").write_text("mine")
    assert main(["init", "task"]) == 2
    assert "task is not empty" in capsys.readouterr().err
    assert [path.name for path in (place / "task").iterdir()] == ["mine.txt"]


def test_an_empty_folder_will_do_and_a_file_will_not(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "empty").mkdir()
    (place / "file").write_text("")
    assert main(["init", "empty"]) == 0
    assert main(["init", "file"]) == 2
    assert "file cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("algorithm", recipes())
def test_a_run_of_every_recipe_can_be_launched_and_says_what_the_recipe_is(place: Path, algorithm: str) -> None:
    write_task(place / "task", algorithm)
    config = load(str(place / "task/run.yaml"), discovered={}).config
    assert config.algorithm == load("conf/rlhf.yaml", [f"algorithm={algorithm}"], discovered={}).config.algorithm
    assert f"#   name: {config.algorithm.name}" in (place / "task/run.yaml").read_text().replace("#     ", "#   ")


@pytest.mark.parametrize(
    ("algorithm", "problem"),
    [
        ("gropo", r"--algorithm gropo: there is no such recipe, did you mean grpo\?; there is cispo, .*vc_ppo"),
        ("sft", r"--algorithm sft learns from a data set.*: rlserve launch conf/sft\.yaml"),
    ],
)
def test_what_is_no_recipe_for_rewards_is_refused_and_nothing_is_written(
    place: Path, algorithm: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", "task", "--algorithm", algorithm]) == 2
    assert re.search(problem, capsys.readouterr().err)
    assert not (place / "task").exists()
