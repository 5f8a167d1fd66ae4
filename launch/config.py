"""Configuration of the launchers. Plain data: imports nothing of rlserve but its errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    """Where the run's worker processes live."""

    kind: Literal["local", "cluster"] = "local"
    """``local`` embeds Ray in this process; ``cluster`` joins a running Ray cluster."""
    address: str | None = None
    """Of the cluster, as for ``ray.init``; None with ``cluster`` takes RAY_ADDRESS or the cluster of this machine."""
