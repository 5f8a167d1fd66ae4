"""Configuration of the weight transport. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rlserve.errors import check_fields


@dataclass(frozen=True, kw_only=True)
class WeightsConfig:
    """How a new version of the weights gets from the trainer into the engines."""

    transport: Literal["object_store"] = "object_store"
    """Ray's object store."""
    timeout_s: float = 120.0
    """Deadline of one replica taking one version."""

    def __post_init__(self) -> None:
        check_fields(self, {"timeout_s": self.timeout_s > 0 or "must be above 0"})
