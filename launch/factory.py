"""Choosing the launcher."""

from __future__ import annotations

from rlserve.launch.base import Launcher
from rlserve.launch.cluster import ClusterLauncher
from rlserve.launch.config import LaunchConfig
from rlserve.launch.local import LocalLauncher


def create_launcher(config: LaunchConfig) -> Launcher:
    """The launcher that the configuration names."""
    if config.kind == "cluster":
        return ClusterLauncher(config.address)
    return LocalLauncher()
