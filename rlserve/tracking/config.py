"""Configuration of tracking. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """Weights & Biases, with the names its users know."""

    enabled: bool = True
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """``auto`` is online with a key and offline without."""
    project: str = "rlserve"
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where metrics go besides ``metrics.jsonl``, which is always written."""

    wandb: WandbConfig = WandbConfig()
    tensorboard: bool = True
    progress: Literal["auto", "live", "plain", "none"] = "auto"
    """``auto`` is a live display in a terminal and plain lines elsewhere."""
