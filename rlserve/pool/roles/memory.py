"""The memory of this process's device: what was taken of it, and what an engine may take beside a trainer."""

from __future__ import annotations

import psutil
import torch

from rlserve.engine import EngineConfig
from rlserve.engine.kv_cache.capacity import token_bytes
from rlserve.engine.models.base import ModelSpec
from rlserve.errors import UserError


def used_bytes(device: str) -> int:
    """On a GPU what torch has taken from it for this process; on the CPU all that the process has in memory."""
    if device == "cuda":
        return torch.cuda.memory_reserved()
    return int(psutil.Process().memory_info().rss)


def total_bytes(device: str) -> int:
    """Of the GPU, or of the machine."""
    if device == "cuda":
        return torch.cuda.get_device_properties(0).total_memory
    return int(psutil.virtual_memory().total)


def kv_cache_bytes(config: EngineConfig, spec: ModelSpec, *, budget_bytes: int, weight_bytes: int) -> int:
    """What is left of an engine's memory beside its weights; no more than all sequences at their longest fill, and as
    much again for the prefix cache.

    Raises:
        UserError: there is not room for one sequence.
    """
    max_model_len = config.max_model_len or spec.max_position
    sequence_bytes = (max_model_len + config.block_size) * token_bytes(config, spec)
    left_bytes = budget_bytes - weight_bytes
    if left_bytes < sequence_bytes:
        budget, weights, sequence = (each / 2**20 for each in (budget_bytes, weight_bytes, sequence_bytes))
        raise UserError(
            f"pool.colocated.rollout_memory_share gives an engine {budget:.0f} MiB, of which its weights take "
            f"{weights:.0f} MiB, and one sequence of {max_model_len} tokens {sequence:.1f} MiB: raise it, or lower "
            "rollout.engine.max_model_len"
        )
    return min(left_bytes, 2 * config.max_num_sequences * sequence_bytes)
