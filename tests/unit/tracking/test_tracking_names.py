from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from metric_names import spelled_out

import rlserve
from rlserve.tracking import names

TRAINING = (
    "train",
    "val",
    "training",
    "actor",
    "critic",
    "response_length",
    "prompt_length",
    "timing_s",
    "perf",
    "val-core",
)
FAMILIES = (*TRAINING, "frac_reward_zero_std", "reward", "vllm", "rollout", "pool", "manager", "weights", "cost")
CONSTANTS = {key: value for key, value in vars(names).items() if key.isupper() and isinstance(value, str)}


def test_names_used_in_code_are_documented() -> None:
    assert len(CONSTANTS) >= 8
    assert set(CONSTANTS.values()) <= spelled_out()


def literals(folder: Path) -> set[str]:
    """The strings in the code of a folder that look like names of metrics."""
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return {text for text in found if re.fullmatch(rf"({'|'.join(FAMILIES)})[/:][\w/@]+", text)}


@pytest.mark.parametrize("folder", ["trainers", "controller"])
def test_every_metric_that_the_code_names_is_documented(folder: str) -> None:
    used = literals(Path(rlserve.__file__).parent / folder)
    assert len(used) > 10
    documented = spelled_out()
    undocumented = {
        name for name in used if not any(other == name or other.startswith(f"{name}/") for other in documented)
    }
    assert not undocumented


def test_names_belong_to_a_family() -> None:
    families = {re.split(r"[/:]", name)[0] for name in spelled_out()}
    assert families == set(FAMILIES)


def test_the_room_is_used_without_torch() -> None:
    modules = ("tracker", "wandb", "tensorboard", "summary", "progress", "logs", "report.png", "report.html")
    imports = "\n".join(f"import rlserve.tracking.{module}" for module in modules)
    check = "import sys; assert not {'torch', 'tensorflow', 'ray'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", f"{imports}\n{check}"], check=True, timeout=60)
