"""Modules of rewards in a folder of their own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rlserve.errors import RewardError
from rlserve.rollout.config import RewardConfig
from rlserve.rollout.rewards.factory import create_reward


def test_a_module_is_found_in_the_folder_that_the_configuration_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "module_of_another_folder.py").write_text("def score(sample):\n    return 0.25\n")
    monkeypatch.setattr(sys, "path", [*sys.path])
    name = "module_of_another_folder:score"
    with pytest.raises(RewardError):
        create_reward(RewardConfig(function=name))
    create_reward(RewardConfig(function=name, module_folder=str(tmp_path)))
    assert sys.path[-1] == str(tmp_path), "after all others"
