"""Runs on slots that only take as long as accelerators would: their times are those of the accelerators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlserve.roofline.accelerators import PACED_PREFIX


def is_paced(config: Mapping[str, Any]) -> bool:
    """Whether a run's configuration, as plain data, has paced slots."""
    slots = config.get("pool", {}).get("slots")
    return isinstance(slots, list) and any(str(group.get("type", "")).startswith(PACED_PREFIX) for group in slots)
