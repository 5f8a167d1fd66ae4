"""Plain builders for the tests of the configuration."""

from __future__ import annotations

from typing import Any

from rlserve.config.checks import check_parts
from rlserve.config.tree import RunConfig
from rlserve.config.validation import validate

TWO_TYPES = [{"type": "cpu-a", "count": 2, "prefer": "train"}, {"type": "cpu-b", "count": 2, "prefer": "rollout"}]


def config_of(**parts: Any) -> RunConfig:
    smallest = {"model": {"path": "a/b"}, "data": {"path": "a/b"}, "reward": {"function": "m:f"}}
    config, problems = validate(RunConfig, smallest | {"pool": {"slots": TWO_TYPES}} | parts)
    assert config is not None, problems
    return config


def problems_of(discovered: dict[str, int] | None = None, **parts: Any) -> list[str]:
    return [str(problem) for problem in check_parts(config_of(**parts), discovered or {})]


PACED = [{"type": "paced-H100", "count": 2}, {"type": "paced-H200", "count": 2}]
