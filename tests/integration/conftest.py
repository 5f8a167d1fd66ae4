"""Workplaces for runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from model_folders import write_model, write_prompts
from runs import Workplace


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_prompts(tmp_path_factory.mktemp("data") / "prompts.jsonl")


@pytest.fixture
def workplace(tmp_path: Path, tiny_model: Path, prompts: Path) -> Iterator[Workplace]:
    place = Workplace(tmp_path, tiny_model, prompts)
    yield place
    place.end()


@pytest.fixture(scope="module")
def shared_workplace(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, prompts: Path) -> Iterator[Workplace]:
    place = Workplace(tmp_path_factory.mktemp("place"), tiny_model, prompts)
    yield place
    place.end()
