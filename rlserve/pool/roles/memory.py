"""What this process has taken of its device's memory."""

from __future__ import annotations

import psutil
import torch


def used_bytes(device: str) -> int:
    """On a GPU what torch has taken from it for this process; on the CPU all that the process has in memory."""
    if device == "cuda":
        return torch.cuda.memory_reserved()
    return int(psutil.Process().memory_info().rss)
