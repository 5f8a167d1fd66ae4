"""Taking up a run: which folder, which configuration, what may change."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlserve.config import load, to_yaml
from rlserve.config.resume import differing_keys, find_run, load_run
from rlserve.errors import ConfigurationError, UserError
from rlserve.manager.config import StaticConfig


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``runs/first``, saved with a learning rate of its own; ``runs/latest`` points at it."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs/first"
    folder.mkdir(parents=True)
    config = load("conf/rlhf.yaml", ["trainer.learning_rate=0.5"], discovered={}).config
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    (tmp_path / "runs/latest").symlink_to("first")
    return folder


@pytest.mark.parametrize("name", ["first", "latest", "runs/first", "runs/latest"])
def test_a_run_is_found_by_name_and_by_folder(run: Path, name: str) -> None:
    assert find_run(name, "runs") == run


def test_a_run_below_the_home_folder_is_found(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(run.parent))
    assert find_run("~/first", "elsewhere") == run


def test_a_run_goes_on_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "project"
    (project / "runs/r").mkdir(parents=True)
    (project / "data.jsonl").touch()
    (project / "score.py").touch()
    (project / "run.yaml").write_text(
        "defaults: [model: addition, _self_]\ndata: {path: data.jsonl}\nreward: {function: 'score.py:score'}\n"
    )
    monkeypatch.chdir(project)
    (project / "runs/r/config.yaml").write_text(to_yaml(load("run.yaml", discovered={}).config))
    monkeypatch.chdir(tmp_path)
    config = load_run(find_run("project/runs/r", "runs"), [], discovered={}).config
    assert (config.data.path, config.reward.function) == (f"{project}/data.jsonl", f"{project}/score.py:score")
    assert config.output_dir == str(project / "runs")


def test_a_run_that_is_not_there(run: Path) -> None:
    with pytest.raises(UserError) as caught:
        find_run("second", "runs")
    assert str(caught.value) == (
        "no run 'second' to resume: no config.yaml in second or runs/second; runs there: first, latest"
    )


def test_no_run_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"runs there: none$"):
        find_run("latest", "runs")


def test_the_saved_configuration_counts(run: Path) -> None:
    loaded = load_run(run, [], discovered={})
    assert loaded.config.trainer.learning_rate == 0.5
    assert loaded.source == run / "config.yaml"


def test_what_may_change_changes(run: Path) -> None:
    config = load_run(run, ["num_steps=7", "pool=two", "manager.policy=static", "tracking=off"], discovered={}).config
    assert config.num_steps == 7
    assert len(config.pool.slots) == 2
    assert config.manager == StaticConfig()
    assert not config.tracking.tensorboard


def test_what_must_not_change_is_refused_all_at_once(run: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_run(run, ["seed=1", "num_steps=7", "trainer.learning_rate=1", "model=addition"], discovered={})
    may = "cannot change when a run is resumed; only num_steps, tracking, cost, launch, pool and manager can"
    assert str(caught.value).splitlines() == [
        f"override: seed: {may}",
        f"override: trainer.learning_rate: {may}",
        f"override: model: {may}",
    ]


def test_differences_between_two_configurations() -> None:
    saved = {"name": "a", "seed": 0, "pool": {"slots": "auto"}, "old": 1}
    given = {"name": "b", "seed": 1, "pool": {"slots": []}, "new": 1}
    assert differing_keys(saved, given) == ("seed", "pool.slots", "old", "new")
    assert differing_keys(saved, saved) == ()
