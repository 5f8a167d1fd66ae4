"""Choosing the launcher."""

from __future__ import annotations

from rlserve.launch.config import LaunchConfig
from rlserve.launch.connect.base import Launcher
from rlserve.launch.connect.cluster import ClusterLauncher
from rlserve.launch.connect.local import LocalLauncher


def create_launcher(config: LaunchConfig) -> Launcher:
    """The launcher that the configuration names."""
    if config.kind == "cluster":
        return ClusterLauncher(config.address, config.wait_s)
    return LocalLauncher()
