"""Configuration of the weight transport. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlserve.errors import check_fields


@dataclass(frozen=True, kw_only=True)
class ObjectStoreConfig:
    """Weights go from the trainers into the engines through Ray's object store."""

    transport: Literal["object_store"] = "object_store"
    """How new weights get from the trainers into the engines."""
    timeout_s: float = 120.0
    """Deadline of a trainer sending a version, and of a replica taking it."""
    anchor_every: int = 10
    """One version of so many is sent whole, the others as what changed, where that pays. 1 sends all whole."""

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True, kw_only=True)
class SharedFolderConfig:
    """Weights go from the trainers into the engines as files in a folder that all nodes see."""

    transport: Literal["shared_folder"] = "shared_folder"
    """How new weights get from the trainers into the engines."""
    folder: str = ""
    """The folder, in which the run makes its own; empty takes the run's folder. One in memory is fastest."""
    timeout_s: float = 120.0
    """Deadline of a trainer sending a version, and of a replica taking it."""
    anchor_every: int = 10
    """One version of so many is sent whole, the others as what changed, where that pays. 1 sends all whole."""

    def __post_init__(self) -> None:
        _check(self)


WeightsConfig = ObjectStoreConfig | SharedFolderConfig
"""One of them, by ``transport``."""


def sends_deltas(config: WeightsConfig) -> bool:
    """Whether a version may travel as what changed: then both ends keep the last one."""
    return config.anchor_every > 1


def _check(config: WeightsConfig) -> None:
    check_fields(
        config,
        {
            "timeout_s": config.timeout_s > 0 or "must be above 0",
            "anchor_every": config.anchor_every >= 1 or "must be at least 1",
        },
    )
