"""How many KV blocks to hold: as told, or what the memory of a GPU has room for beside weights and the largest step.

    weights in place ──► largest step, with a cache of one block ──► what is free then, less what the step took
                                                                                        │
    KV blocks ◄── gpu_memory_fraction of it ◄───────────────────────────────────────────┘

Pure: ``engine/device/transfer.py`` measures.
"""

from __future__ import annotations

import numpy as np
import torch

from rlserve.engine.attention.base import StepLayout
from rlserve.engine.config import EngineConfig
from rlserve.engine.device.memory import MemoryLeft
from rlserve.engine.kernels.base import SamplingBatch
from rlserve.engine.kv_cache.capacity import DEFAULT_BYTES
from rlserve.errors import UserError


def is_measured(config: EngineConfig, device: torch.device, num_ranks: int) -> bool:
    """Whether what is free decides: nothing is told, on a GPU. Ranks would find different sizes."""
    return config.num_blocks is None and config.kv_cache_bytes is None and device.type == "cuda" and num_ranks == 1


def count_blocks(config: EngineConfig, block_bytes: int, max_model_len: int, left: MemoryLeft | None) -> int:
    """KV blocks to hold, of ``block_bytes`` each, where ``left`` was measured or None. What was measured is not used
    up for more than all sequences at their longest, and as much again for the prefix cache.

    Raises:
        UserError: there is not room for one.
    """
    if config.num_blocks is not None:
        return config.num_blocks
    if config.kv_cache_bytes is None and left is not None:
        num_blocks = int((left.free_bytes - left.step_bytes) * config.gpu_memory_fraction) // block_bytes
        num_blocks = min(num_blocks, 2 * config.max_num_sequences * -(-max_model_len // config.block_size))
        origin = (
            f"the GPU has {left.free_bytes} bytes free, and a step takes {left.step_bytes}: of the rest, "
            f"gpu_memory_fraction={config.gpu_memory_fraction:g}"
        )
    else:
        num_bytes = DEFAULT_BYTES if config.kv_cache_bytes is None else config.kv_cache_bytes
        num_blocks, origin = num_bytes // block_bytes, f"kv_cache_bytes={num_bytes}"
    if num_blocks < 1:
        raise UserError(
            f"{origin} is less than one block of {config.block_size} tokens, which takes {block_bytes} bytes"
        )
    return num_blocks


def largest_step(config: EngineConfig, max_model_len: int) -> StepLayout:
    """A step of as many tokens and sequences as there may be: prompts from position 0 on, nearly equal in length. They
    all use block 0, so it is good for measuring only."""
    num_sequences = min(config.max_num_sequences, config.max_num_batched_tokens)
    num_tokens = min(config.max_num_batched_tokens, num_sequences * max_model_len)
    query_starts = (np.arange(num_sequences + 1) * num_tokens // num_sequences).astype(np.int32)
    lengths = np.diff(query_starts)
    positions = np.arange(num_tokens, dtype=np.int32) - np.repeat(query_starts[:-1], lengths)
    return StepLayout(
        token_ids=np.zeros(num_tokens, dtype=np.int64),
        positions=positions,
        cache_slots=(positions % config.block_size).astype(np.int64),
        query_starts=query_starts,
        table_rows=np.zeros(num_sequences, dtype=np.int32),
        block_tables=np.zeros((1, -(-max_model_len // config.block_size)), dtype=np.int32),
    )


def largest_draw(num_rows: int) -> SamplingBatch:
    """The draw that takes most: every row must be sorted, and the kept tokens are wanted."""
    ones = np.ones(num_rows, dtype=np.float32)
    return SamplingBatch(
        logits_row=np.arange(num_rows, dtype=np.int32),
        temperature=ones,
        top_k=np.zeros(num_rows, dtype=np.int32),
        top_p=ones * 0.9,
        min_p=ones * 0.0,
        uniform=np.full(num_rows, 0.5),
        wants_kept=True,
    )
