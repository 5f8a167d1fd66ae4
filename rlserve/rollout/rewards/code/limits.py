"""What a program may take, and what became of it. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from rlserve.rollout.rewards.config import CodeRewardConfig


class End(StrEnum):
    """How a program ended."""

    EXIT = "exit"
    """By itself, or by a signal that it brought upon itself."""
    WALL_TIME = "wall_time"
    """It was ended when its time was over."""
    OUTPUT = "output"
    """It was ended since it had printed too much."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a program."""

    end: End
    exit_code: int | None = None
    """None where it did not end by itself, or was ended by a signal."""
    signal: int | None = None
    output: bytes = b""
    """What it printed, up to the limit."""


def limits_of(config: CodeRewardConfig) -> dict[str, int]:
    """As ``confinement`` takes them."""
    return {
        "cpu_time_s": config.cpu_time_s,
        "memory_bytes": config.memory_bytes,
        "file_bytes": config.file_bytes,
        "processes": config.num_processes,
    }
