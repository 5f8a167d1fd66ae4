"""Configuration of tracking. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """Weights & Biases, with the names its users know."""

    enabled: bool = True
    """Whether to track with Weights & Biases."""
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """``auto`` is online with a key and offline without."""
    project: str = "rlserve"
    """Project that the run appears in."""
    entity: str | None = None
    """User or team; None takes the account's default."""
    group: str | None = None
    """Group of runs that it belongs to."""
    tags: tuple[str, ...] = ()
    """Tags of the run."""


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where metrics go besides ``metrics.jsonl``, which is always written."""

    wandb: WandbConfig = WandbConfig()
    tensorboard: bool = True
    """Write event files into the run's folder."""
    progress: Literal["auto", "live", "plain", "none"] = "auto"
    """``auto`` is a live display in a terminal and plain lines elsewhere."""
