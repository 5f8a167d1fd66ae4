"""Paths: ``~``, absolute where they exist; what belongs to the built-in task; remarks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from rlserve.config import LoadedConfig, load, to_yaml
from rlserve.config.paths import FUNCTION_KEYS, PATH_KEYS, settle_paths
from rlserve.config.tree import RunConfig
from rlserve.errors import ConfigurationError
from rlserve.rollout.rewards.config import RewardPartConfig

OWN = ["data.path=data.jsonl", "reward.function=score.py:score"]
BUILTIN_REWARD = "rlserve.tasks.addition:reward"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder with data and a reward in it, and a home folder with the same beside it."""
    for place in (tmp_path / "work", tmp_path / "home"):
        place.mkdir()
        (place / "data.jsonl").touch()
        (place / "score.py").write_text("def score(sample): return 0.0\n")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "work"


def loaded(*overrides: str, path: str = "conf/rlhf.yaml") -> LoadedConfig:
    return load(path, overrides, discovered={})


def problems(*overrides: str, path: str = "conf/rlhf.yaml") -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        loaded(*overrides, path=path)
    return str(caught.value).splitlines()


# Paths


def test_every_key_that_holds_a_path_is_known() -> None:
    def names(cls: Any, key: str) -> set[str]:
        found = set()
        for name, annotation in get_type_hints(cls).items():
            child = f"{key}.{name}" if key else name
            found |= names(annotation, child) if hasattr(annotation, "__dataclass_fields__") else {child}
        return found

    looks_like_one = {key for key in names(RunConfig, "") if re.search(r"(path|_dir|_folder|_file)$", key)}
    of_parts = {f"reward.parts.*.{name}" for name in names(RewardPartConfig, "")}
    looks_like_one |= {key for key in of_parts if key.endswith(("path", "_folder"))}
    others = {
        "rollout.workload.trace",
        "pool.pacing.model",
        "trainer.critic_model_path",
        "cost.prices",
        "launch.templates",
        "rollout.server.access.tls_certificate",
        "rollout.server.access.tls_key",
        "rollout.server.chat_template",
    }
    assert looks_like_one | others == set(PATH_KEYS)
    assert set(FUNCTION_KEYS) <= names(RunConfig, "") | of_parts


@pytest.mark.parametrize("key", [*PATH_KEYS, *FUNCTION_KEYS])
def test_home_and_relative_paths(folder: Path, key: str) -> None:
    def settled(path: str) -> object:
        values: Any = path
        for part in reversed(key.split(".")):  # the star is as good a name as any
            values = {part: values}
        found: Any = settle_paths(values, "runs")
        for part in key.split("."):
            found = found[part]
        return found

    end = ":score" if key in FUNCTION_KEYS else ""
    home = folder.parent / "home"
    assert settled(f"~/score.py{end}") == f"{home}/score.py{end}"
    assert settled(f"~/none.py{end}") == f"{home}/none.py{end}"
    assert settled(f"score.py{end}") == f"{folder}/score.py{end}"
    assert settled(f"{folder}/../home/score.py{end}") == f"{home}/score.py{end}"
    unknown = f"org/none.py{end}"
    is_made = key in (
        "output_dir",
        "pool.notice_file",
        "rollout.server.accounting.usage_file",
        "rollout.server.admin.profile_folder",
        "rollout.server.audit.path",
    )
    assert settled(unknown) == (f"{folder}/{unknown}" if is_made else unknown)


def test_home_in_an_override_and_in_a_file(folder: Path) -> None:
    home = folder.parent / "home"
    config = loaded("data.path=~/data.jsonl", "reward.function=~/score.py:score", "output_dir=~/runs").config
    assert (config.data.path, config.reward.function) == (f"{home}/data.jsonl", f"{home}/score.py:score")
    assert config.output_dir == f"{home}/runs"
    (folder / "run.yaml").write_text(
        "model: {path: org/model}\ndata: {path: ~/data.jsonl}\nreward: {function: '~/score.py:score'}\n"
    )
    config = loaded(path="run.yaml").config
    assert (config.data.path, config.reward.function) == (f"{home}/data.jsonl", f"{home}/score.py:score")


def test_a_saved_configuration_means_the_same_from_any_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for function, module_folder in (("score.py:score", None), ("score:score", str(folder))):
        monkeypatch.chdir(folder)
        config = loaded("data.path=data.jsonl", f"reward.function={function}").config
        assert config.reward.module_folder == module_folder
        (folder.parent / "saved.yaml").write_text(to_yaml(config))
        monkeypatch.chdir(folder.parent)
        assert loaded(path="saved.yaml").config == config


def test_a_module_of_the_users_is_found_again_wherever_it_lay(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def module_folder(module: str) -> str | None:
        return loaded("data.path=data.jsonl", f"reward.function={module}:score").config.reward.module_folder

    home = folder.parent / "home"
    (home / "pack").mkdir()
    (home / "pack/__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend("../home")  # as PYTHONPATH=../home has it
    assert module_folder("pack.rewards") == module_folder("pack") == str(home)
    assert module_folder("score") == str(home), "what is on Python's path counts more than the working folder"
    assert module_folder("no_such_module") == str(folder)
    game = loaded("data=verifiers", "environment.name=verifiers:me/score").config
    assert (game.environment.module_folder, game.data.path) == (str(home), "verifiers:me/score")
    assert module_folder("yaml") is None, "it is installed"


def test_several_rewards_are_found_again_and_take_the_place_of_the_built_in_one(folder: Path) -> None:
    (folder / "run.yaml").write_text(
        "defaults: [rlhf, _self_]\ndata: {path: data.jsonl}\nreward:\n  parts:\n"
        "    right: {function: 'score.py:score'}\n    format: {function: 'score:score', weight: 1e-1}\n"
    )
    config = loaded("reward.parts.right.weight=2", path="run.yaml").config
    assert config.reward.function is None
    assert config.reward.parts == {
        "right": RewardPartConfig(function=f"{folder}/score.py:score", weight=2.0),
        "format": RewardPartConfig(function="score:score", module_folder=str(folder), weight=0.1),
    }
    (folder.parent / "saved.yaml").write_text(to_yaml(config))
    assert loaded(path=f"{folder.parent}/saved.yaml").config == config


def test_the_built_in_reward_is_looked_up_nowhere_else(folder: Path) -> None:
    assert loaded().config.reward.module_folder is None


# What belongs to the built-in task


def test_own_data_do_not_train_on_the_built_in_reward(folder: Path) -> None:
    for overrides in (["data.path=data.jsonl"], ["data.path=data.jsonl", "model.path=org/model"]):
        (problem,) = problems(*overrides)
        assert "reward.function: rlserve.tasks.addition:reward scores answers to builtin:addition" in problem
        assert loaded(*overrides, "reward.function=score.py:score")
        assert loaded(*overrides, "reward.model_path=org/reward").config.reward.function is None
        assert loaded(*overrides, f"reward.function={BUILTIN_REWARD}").config.reward.function == BUILTIN_REWARD
    (folder / "run.yaml").write_text("defaults: [rlhf, _self_]\ndata: {path: data.jsonl}\n")
    assert len(problems(path="run.yaml")) == 1
    (folder / "run.yaml").write_text(
        "defaults: [rlhf, _self_]\ndata: {path: data.jsonl}\nreward: {function: score:f}\n"
    )
    assert loaded(path="run.yaml")


def test_an_own_model_does_not_train_on_the_built_in_data_unless_told_to(folder: Path) -> None:
    (problem,) = problems("model.path=org/model")
    assert "data.path: builtin:addition is made for model.path=builtin:addition" in problem
    config = loaded("model.path=org/model", "data.path=builtin:addition").config
    assert (config.data.path, config.reward.function) == ("builtin:addition", BUILTIN_REWARD)


def test_what_a_hint_says_to_keep_is_kept(folder: Path) -> None:
    for overrides in (["data.path=data.jsonl"], ["model.path=org/model"]):
        (problem,) = problems(*overrides)
        kept = re.findall(r"keep it with (\S+)", problem)
        assert len(kept) == 1
        loaded(*overrides, *kept)


def test_settings_for_the_small_model_are_pointed_out_for_an_own_one(folder: Path) -> None:
    assert loaded(*OWN).remarks == ()
    remarks = [str(remark) for remark in loaded("model.path=org/model", "rollout.max_tokens=9", *OWN).remarks]
    assert [remark.partition(": ")[0].rpartition("conf/")[2] for remark in remarks] == [
        "trainer/small.yaml",
        "rollout/small.yaml",
    ]
    assert "trainer.learning_rate=0.0002" in remarks[0]
    assert "rollout.prompts_per_step=16" in remarks[1]
    assert "max_tokens" not in remarks[1]


# Remarks


def remarks(*overrides: str) -> list[str]:
    return [f"{remark.key}: {remark.message}" for remark in loaded(*overrides).remarks]


def test_thresholds_that_can_never_act_are_refused_with_values_that_do() -> None:
    eager = "manager=eager"
    assert remarks(eager, "manager.queue_high=31") == remarks("manager=static") == []
    (high,) = problems("manager=queue_threshold")
    assert "manager.queue_high: the queue is never longer than the 32 prompt groups that may be live" in high
    assert "rollout.max_staleness 1 + 1) x rollout.prompts_per_step 16" in high
    advised = re.findall(r"manager\.queue_(?:high|low)=\d+", high)
    assert len(advised) == 2
    loaded("manager=queue_threshold", *advised)
    loaded("manager=queue_threshold", "manager.queue_high=31")
    assert len(problems("manager=queue_threshold", "manager.queue_high=32")) == 1
    (low,) = problems(eager, "manager.queue_low=0")
    assert "manager.queue_low: no queue is below 0" in low
    loaded(eager, *re.findall(r"manager\.queue_low=\d+", low))
    assert problems("manager=queue_threshold", "manager.queue_low=0", "rollout.max_staleness=6") != []
    loaded("manager=queue_threshold", "pool.placement=separate")


def test_splits_that_can_never_change() -> None:
    (two,) = remarks("pool=two")
    assert two == "pool.slots: one of the 2 trains and one rolls out, so nothing ever moves (manager=static)"
    shares = ["manager.min_rollout_share=0.5", "manager.max_rollout_share=0.6"]
    (four,) = remarks(*shares)
    assert four.startswith("manager.max_rollout_share: rollout shares from 0.5 to 0.6 leave 4 slots one split, 2 for")
    assert remarks("pool=two", "manager=static") == []
    assert remarks("manager.min_rollout_share=0.5") == []


def test_slots_that_start_beyond_what_the_manager_keeps() -> None:
    (beyond,) = remarks("manager.max_rollout_share=0.4")
    assert beyond.startswith(
        "pool.slots: 2 of 4 slots start as rollout, as they prefer, but the manager keeps between 1"
    )
    with pytest.raises(ConfigurationError, match=r"pool.num_initial_rollout: must be between 1 and 1"):
        loaded("manager.max_rollout_share=0.4", "pool.num_initial_rollout=2")
