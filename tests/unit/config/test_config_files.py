"""Every YAML file that is shipped loads, and every choice of every group."""

from __future__ import annotations

from pathlib import Path

import pytest
from model_folders import write_model
from omegaconf import OmegaConf

from rlserve.config import as_plain, load
from rlserve.config.locate import SERVER_FILE
from rlserve.config.tree import RunConfig

ROOT = Path(__file__).parents[3]
CONF = ROOT / "conf"
FILES = [*CONF.glob("*.yaml"), *(ROOT / "examples").glob("**/*.yaml")]
RUN_FILES = sorted(path for path in FILES if path.name != SERVER_FILE)
CHOICES = sorted(f"{path.parent.relative_to(CONF)}={path.stem}" for path in CONF.glob("*/**/*.yaml"))
EVERY_TYPE = {"H100": 8, "H200": 8}
NEEDED = {
    "queue_threshold": ["rollout.prompts_per_step=128"],  # what its thresholds are made for
    "nccl": ["pool=auto", "trainer.deterministic=false"],  # GPUs
    "verifiers": ["environment.name=verifiers:game"],
    "cuda_ipc": ["pool=auto", "trainer.deterministic=false"],
}


MADE_FIRST = ("own_task", "code_reward", "calculator_tool", "reward_model")
"""Examples whose model is made by a program of their own."""


@pytest.mark.parametrize("path", RUN_FILES, ids=str)
def test_every_run_file_loads(path: Path, tmp_path: Path) -> None:
    made_first = [f"model.path={write_model(tmp_path)}"] if path.parent.name in MADE_FIRST else []
    if path.name == "ppo.yaml":  # its reward model is made by the run before
        made_first.append(f"reward.parts.judge.model_path={tmp_path}")
    assert load(str(path), made_first, discovered=EVERY_TYPE).source == path


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_of_every_group_loads_and_has_its_way(choice: str) -> None:
    group, _, name = choice.partition("=")
    resolved = load(str(CONF / "rlhf.yaml"), [choice, *NEEDED.get(name, ())], discovered=EVERY_TYPE).resolved
    file = CONF / group / f"{name}.yaml"
    is_global = file.read_text(encoding="utf-8").startswith("# @package _global_\n")
    written = OmegaConf.load(file)
    for part in () if is_global else reversed(group.split("/")):
        written = OmegaConf.create({part: written})
    # What is written may refer to other keys.
    assert _agrees(resolved, OmegaConf.to_container(OmegaConf.merge(resolved, written), resolve=True))


def _agrees(resolved: object, written: object) -> bool:
    """Whether everything written stands in the resolved value."""
    if isinstance(written, dict) and isinstance(resolved, dict):
        return all(_agrees(resolved[key], value) for key, value in written.items())
    if isinstance(written, list) and isinstance(resolved, list):
        return len(written) == len(resolved) and all(map(_agrees, resolved, written))
    return resolved == written


def test_the_default_run_is_the_newcomers() -> None:
    config = load(str(CONF / "rlhf.yaml"), discovered={}).config
    assert config.model.path == config.data.path == "builtin:addition"
    assert [(group.type, group.count, group.prefer) for group in config.pool.slots] == [  # type: ignore[union-attr]
        ("cpu-a", 2, "train"),
        ("cpu-b", 2, "rollout"),
    ]
    assert config.rollout.engine.dtype == "float32"


def test_the_queue_rule_is_the_documented_one() -> None:
    larger = ["manager=queue_threshold", "rollout.prompts_per_step=128"]
    manager = load(str(CONF / "rlhf.yaml"), larger, discovered={}).config.manager
    assert (manager.queue_high, manager.queue_low) == (100, 10)
    assert (manager.max_rollout_share, manager.min_rollout_share) == (0.8, 0.2)


def test_resolved_is_the_whole_tree() -> None:
    loaded = load(str(CONF / "rlhf.yaml"), discovered={})
    assert set(loaded.resolved) == set(RunConfig.__dataclass_fields__)
    assert loaded.resolved == as_plain(loaded.config)
