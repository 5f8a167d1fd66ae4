"""A tiny model that the tests of a module share."""

from __future__ import annotations

import pytest
from trainer_samples import save_tiny_model

pytest.register_assert_rewrite("ppo_trainers")  # so that a failure names the tensors that differ


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("model"))
