"""This machine: Ray embedded in this process, for this run alone."""

from __future__ import annotations

import logging
from collections import Counter

import ray

from rlserve.launch.base import Launcher
from rlserve.pool.catalogue import is_cpu
from rlserve.pool.config import PoolConfig, SlotGroupConfig
from rlserve.pool.discovery import discover_machine
from rlserve.pool.slots import slot_groups


class LocalLauncher(Launcher):
    """Starts a Ray of its own, whatever else runs on the machine, with a resource for each type of CPU slot."""

    def connect(self, config: PoolConfig) -> tuple[SlotGroupConfig, ...]:
        groups = slot_groups(config, discover_machine())
        cpu_slots: Counter[str] = Counter()
        for group in groups:
            if is_cpu(group.type):
                cpu_slots[group.type] += group.count
        # An embedded Ray asks for a token by default, which is what we want, and warns that it does.
        logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
        ray.init(
            address="local",
            resources={name: float(count) for name, count in cpu_slots.items()},
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
            configure_logging=False,
        )
        return groups

    def close(self) -> None:
        ray.shutdown()
