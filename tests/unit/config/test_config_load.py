"""Loading: which file, which groups, which overrides, and where each problem is said to come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlserve.config import LoadedConfig, load
from rlserve.config.locate import locate
from rlserve.errors import ConfigurationError

RUN = """\
defaults:
  - pool: four
  - _self_
model: {path: org/model}
data: {path: org/data}
reward: {function: "my.module:score"}
"""


class Project:
    """A user's own folder with a ``conf`` in it; the process stands in that folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, path: str, text: str) -> None:
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / path).write_text(text, encoding="utf-8")

    def load(self, path: str, *overrides: str) -> LoadedConfig:
        return load(path, overrides, discovered={})

    def problems(self, path: str, *overrides: str) -> list[str]:
        with pytest.raises(ConfigurationError) as caught:
            self.load(path, *overrides)
        assert caught.value.exit_code == 2
        return str(caught.value).splitlines()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(tmp_path)
    made = Project(tmp_path)
    made.write("conf/run.yaml", RUN)
    return made


# Which file


def test_a_packaged_configuration_is_found_from_any_folder(project: Project) -> None:
    loaded = project.load("conf/rlhf.yaml")
    assert loaded.config.model.path == "builtin:addition"
    assert loaded.source.name == "rlhf.yaml"
    assert not loaded.source.is_relative_to(project.folder)


def test_a_users_file_comes_before_the_packaged_one(project: Project) -> None:
    project.write("conf/rlhf.yaml", RUN + "num_steps: 7\n")
    loaded = project.load("conf/rlhf.yaml")
    assert loaded.config.num_steps == 7
    assert loaded.source == project.folder / "conf/rlhf.yaml"


NO_SUCH = (
    "no such configuration; those that come with rlserve: conf/paced.yaml, conf/reward_model.yaml, conf/rlhf.yaml, "
    "conf/rlhf_reward_model.yaml, conf/sft.yaml"
)


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("conf/rlhff.yaml", NO_SUCH),
        ("/nowhere/rlhf.yaml", NO_SUCH),
        ("conf", "is a folder: name one of its .yaml files"),
        ("conf/run.yml", "a configuration's name must end in .yaml"),
    ],
)
def test_a_file_that_cannot_be_taken(project: Project, path: str, problem: str) -> None:
    project.write("conf/run.yml", RUN)
    assert project.problems(path) == [f"{path}: {problem}"]


def test_the_root_is_the_nearest_folder_named_conf_or_else_the_files_own(project: Project) -> None:
    project.write("conf/deep/conf/exp/a.yaml", RUN)
    project.write("elsewhere/b.yaml", RUN)
    assert locate("conf/deep/conf/exp/a.yaml").root == project.folder / "conf/deep/conf"
    assert locate("conf/deep/conf/exp/a.yaml").name == "exp/a"
    assert locate("elsewhere/b.yaml").root == project.folder / "elsewhere"


# Groups


def test_groups_come_from_the_users_root_and_then_from_the_packaged_one(project: Project) -> None:
    project.write("conf/pool/mine.yaml", "slots: [{type: cpu-x, count: 5}]")
    assert sum(group.count for group in project.load("conf/run.yaml").config.pool.slots) == 4  # type: ignore[union-attr]
    mine = project.load("conf/run.yaml", "pool=mine").config.pool.slots
    assert [group.type for group in mine] == ["cpu-x"]  # type: ignore[union-attr]


def test_a_group_that_the_defaults_list_does_not_name_can_be_chosen(project: Project) -> None:
    assert project.load("conf/run.yaml", "manager=static").config.manager.policy == "static"


def test_a_parents_defaults_list_counts(project: Project) -> None:
    project.write("conf/child.yaml", "defaults:\n  - run\n  - _self_\nnum_steps: 3\n")
    loaded = project.load("conf/child.yaml", "pool=two")
    assert loaded.config.num_steps == 3
    assert [group.type for group in loaded.config.pool.slots] == ["cpu-a", "cpu-b"]  # type: ignore[union-attr]


def test_without_self_in_the_list_the_files_own_values_win(project: Project, recwarn: pytest.WarningsRecorder) -> None:
    project.write("conf/bare.yaml", RUN.replace("  - _self_\n", "") + "pool: {slots: auto}\n")
    assert project.load("conf/bare.yaml").config.pool.slots == "auto"
    assert not [warning for warning in recwarn if "_self_" in str(warning.message)]


def test_a_group_in_the_defaults_list_that_does_not_exist(project: Project) -> None:
    project.write("conf/run.yaml", RUN.replace("four", "fuor"))
    (problem,) = project.problems("conf/run.yaml")
    assert problem.startswith("conf/run.yaml: defaults: no pool/fuor; there is: ")
    assert "four" in problem


def test_a_chosen_group_that_does_not_exist_does_not_hide_other_problems(project: Project) -> None:
    assert project.problems("conf/run.yaml", "weights=rdma", "seed=-1") == [
        "override: weights: no choice 'rdma' of group weights; there is: cuda_ipc, nccl, object_store, shared_folder "
        "(one key is set by weights.KEY=VALUE)",
        "override: seed: must be at least 0, got -1",
    ]


def test_a_nested_run_file_needs_the_header(project: Project) -> None:
    project.write("conf/exp/a.yaml", RUN)
    assert project.problems("conf/exp/a.yaml") == [
        "conf/exp/a.yaml: a run's file in a folder below conf must begin with the line: # @package _global_"
    ]
    project.write("conf/exp/a.yaml", "# @package _global_\n" + RUN)
    assert project.problems("conf/exp/a.yaml") == [
        "conf/exp/a.yaml: defaults: no exp/pool/four.yaml; a group of conf is written /pool: four"
    ]
    project.write("conf/exp/a.yaml", "# @package _global_\n" + RUN.replace("pool: four", "/pool: four"))
    assert project.load("conf/exp/a.yaml").config.model.path == "org/model"


# Files that are wrong


def test_broken_yaml_is_named_with_its_line(project: Project) -> None:
    project.write("conf/run.yaml", "model: {path: x}\ndata: [1,\nseed: 3\n")
    assert project.problems("conf/run.yaml") == [
        "conf/run.yaml:4: is no YAML: expected ',' or ']', but got '<stream end>'"
    ]


def test_broken_yaml_of_a_group_is_named_with_its_line(project: Project) -> None:
    project.write("conf/pool/four.yaml", "slots:\n  - {type: a\n")
    (problem,) = project.problems("conf/run.yaml")
    assert problem.startswith("conf/pool/four.yaml:3: is no YAML: ")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("seed: 1\nseed: 2\n", "conf/run.yaml:2: is no YAML: found duplicate key seed"),
        ("- seed\n", "conf/run.yaml: must hold keys and values at its top"),
        (
            "defaults: 3\n",
            "conf/run.yaml: cannot be composed: Invalid defaults list in 'run', defaults must be a list (got int)",
        ),
    ],
)
def test_a_file_of_the_wrong_shape(project: Project, content: str, problem: str) -> None:
    project.write("conf/run.yaml", content)
    assert project.problems("conf/run.yaml") == [problem]


def test_a_file_that_is_no_text(project: Project) -> None:
    (project.folder / "conf/run.yaml").write_bytes(b"seed: \xff\xfe\n")
    (problem,) = project.problems("conf/run.yaml")
    assert problem.startswith("conf/run.yaml: cannot be composed: 'utf-8' codec")


def test_an_empty_file_misses_what_has_no_default(project: Project) -> None:
    project.write("conf/run.yaml", "")
    assert project.problems("conf/run.yaml") == [f"conf/run.yaml: {key}: must be given" for key in ("model", "data")]


def test_a_problem_names_the_file_that_set_the_key(project: Project) -> None:
    project.write("conf/trainer/odd.yaml", "learning_rte: 1\nweight_decay: -1\nadam_beta1: 2")
    project.write("conf/run.yaml", RUN.replace("- pool", "- trainer: odd\n  - pool") + "trainer: {weight_decay: -2}\n")
    assert project.problems("conf/run.yaml", "trainer.adam_beta1=3") == [
        "conf/trainer/odd.yaml: trainer.learning_rte: unknown key, did you mean trainer.learning_rate?",
        "conf/run.yaml: trainer.weight_decay: must be at least 0, got -2.0",
        "override: trainer.adam_beta1: must be in [0, 1), got 3.0",
    ]


def test_question_marks_and_broken_interpolations(project: Project) -> None:
    project.write(
        "conf/run.yaml", RUN.replace("org/data", "'???'") + 'name: "${nope}"\noutput_dir: "${oc.env:NOT_SET}"\n'
    )
    problems = project.problems("conf/run.yaml")
    assert sorted(problem.split(": ")[1] for problem in problems) == ["data.path", "name", "output_dir"]
    assert "conf/run.yaml: data.path: must be given" in problems
    assert "conf/run.yaml: name: Interpolation key 'nope' not found" in problems


def test_values_that_hold_each_other(project: Project) -> None:
    project.write("conf/run.yaml", RUN + 'tracking: {wandb: "${launch}"}\nlaunch: {address: "${tracking}"}\n')
    assert any(problem.endswith(": refers to itself") for problem in project.problems("conf/run.yaml"))


# Overrides


def test_overrides_set_keys_that_no_file_mentions(project: Project) -> None:
    loaded = project.load(
        "conf/run.yaml", "trainer.weight_decay=1e-5", "rollout.stop=[a,b]", "name='my run'", "pool.slots.0.count=3"
    )
    assert loaded.config.trainer.weight_decay == 1e-5
    assert loaded.config.rollout.stop == ("a", "b")
    assert loaded.config.name == "my run"
    assert loaded.config.pool.slots[0].count == 3  # type: ignore[union-attr]
    assert loaded.resolved["rollout"]["stop"] == ["a", "b"]


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("+seed=1", "+seed=1: no key is ever added, every one has a default: write seed=1"),
        ("++seed=1", "++seed=1: no key is ever added, every one has a default: write seed=1"),
        ("~seed", "~seed: no key is ever taken away: give it the value that you want"),
        ("seed", "seed: must be key=value"),
        ("=1", "=1: must be key=value"),
        ("seed=1,2", "seed: must be a whole number, got '1,2'"),
        ("seed=(", "seed: must be a whole number, got '('"),
        ("sed=é", "sed: unknown key, did you mean seed?"),
        ("pool@x=two", "pool@x=two: a group cannot be put elsewhere: leave out the @"),
        ("hydra.run.dir=x", "hydra.run.dir=x: Hydra's own settings have no effect here"),
        ("pool.slots=[1,", "pool.slots=[1,: cannot be read: no viable alternative at input '[1,'"),
        (
            "pool.slots={type:a,count:1},{type:b,count:1}",
            "pool.slots={type:a,count:1},{type:b,count:1}: is more than one value: write "
            "'pool.slots=[{type:a,count:1},{type:b,count:1}]' for a list",
        ),
        (
            "rollout.stop=a,b",
            "rollout.stop=a,b: write 'rollout.stop=[a,b]' for a list, 'rollout.stop=\"a,b\"' for one text",
        ),
        ("pool.slots.9.count=1", "pool.slots.9.count: list index out of range"),
        ("trainer.learning_rte=1", "trainer.learning_rte: unknown key, did you mean trainer.learning_rate?"),
        ("seed=abc", "seed: must be a whole number, got 'abc'"),
    ],
)
def test_overrides_that_are_refused(project: Project, override: str, problem: str) -> None:
    assert project.problems("conf/run.yaml", override) == [f"override: {problem}"]


def test_all_overrides_are_judged_at_once(project: Project) -> None:
    problems = project.problems("conf/run.yaml", "+a=1", "b.c=2", "seed=x", "data.path=/nowhere", "reward.function=f")
    assert problems == [
        "override: +a=1: no key is ever added, every one has a default: write a=1",
        *[line for line in problems if line.startswith("override: b: unknown key; valid keys: model, ")],
        "override: seed: must be a whole number, got 'x'",
        "override: data.path: no such file or folder, and no data set's name on the hub: '/nowhere'",
        "override: reward.function: must be module:function or path/to/file.py:function, got 'f'",
    ]
    assert len(problems) == 5


def test_a_newcomers_own_model_data_and_reward(project: Project) -> None:
    project.write("my/data.jsonl", "{}")
    project.write("my.py", "raise AssertionError('imported')")
    overrides = ["model.path=org/model", "data.path=my/data.jsonl", "reward.function=my.py:score"]
    config = project.load("conf/rlhf.yaml", *overrides).config
    assert (config.model.path, config.data.path, config.reward.function) == (
        "org/model",
        f"{project.folder}/my/data.jsonl",
        f"{project.folder}/my.py:score",
    )


def test_accelerators_that_this_machine_does_not_have(project: Project) -> None:
    (problem,) = project.problems("conf/run.yaml", "pool=h100_h200")
    assert "pool.slots: asks for H100" in problem
    assert "launch=cluster" in problem
    assert project.load("conf/run.yaml", "pool=h100_h200", "launch=cluster").config.launch.kind == "cluster"
