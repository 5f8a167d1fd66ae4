"""How the tokens of a step are cut for a GPU: single ones first, then tiles of chunks. Pure functions.

Legend as in ``base.py``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MAX_SPLITS = 16
_MIN_KEYS_PER_SPLIT = 128
"""Shorter splits cost more to join than they save."""


def count_single(query_starts: NDArray[np.int32]) -> int:
    """How many sequences, from the first on, have one token each."""
    longer = np.flatnonzero(np.diff(query_starts) != 1)
    return int(longer[0]) if len(longer) else len(query_starts) - 1


def query_tiles(query_starts: NDArray[np.int32], first_sequence: int, tokens_per_tile: int) -> NDArray[np.int32]:
    """[3, tiles] first token, number of tokens and sequence of each tile of the sequences from the given one on."""
    begins, ends = query_starts[first_sequence:-1], query_starts[first_sequence + 1 :]
    tiles_of_sequence = -(-(ends - begins) // tokens_per_tile)
    place = np.repeat(np.arange(len(begins)), tiles_of_sequence)
    index = np.arange(len(place)) - np.repeat(np.cumsum(tiles_of_sequence) - tiles_of_sequence, tiles_of_sequence)
    first_tokens = begins[place] + index * tokens_per_tile
    num_tokens = np.minimum(ends[place] - first_tokens, tokens_per_tile)
    return np.stack([first_tokens, num_tokens, place + first_sequence]).astype(np.int32)


def count_splits(num_programs: int, longest_context: int, num_multiprocessors: int) -> int:
    """Into how many parts (a power of two) to split contexts, so that about two programs run on each
    multiprocessor of the GPU."""
    wanted = min(2 * num_multiprocessors // max(num_programs, 1), longest_context // _MIN_KEYS_PER_SPLIT, _MAX_SPLITS)
    return 1 << (wanted.bit_length() - 1) if wanted > 1 else 1
