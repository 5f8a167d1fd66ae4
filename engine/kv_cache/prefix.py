"""Names of full KV blocks, by content: a chain of hashes, so that a name stands for the whole prefix."""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

HASH_BYTES = 16


@lru_cache(256)  # asked for with each block that is full, under a few versions and salts
def root_hash(weight_version: int, salt: str = "", adapter_id: int = 0) -> bytes:
    """Start of every chain under one version of the weights, one adapter or none, and one salt: other weights make
    other keys and values, and who does not know the salt cannot find out by the time of an answer what others have
    asked. The numbers have a fixed length, so that no two such starts are made of the same bytes."""
    numbers = b"".join(number.to_bytes(8, "little", signed=True) for number in (weight_version, adapter_id))
    return blake2b(numbers + salt.encode("utf-8", "surrogatepass"), digest_size=HASH_BYTES).digest()


def block_hash(parent: bytes, token_ids: NDArray[np.int32]) -> bytes:
    """Name of the block that holds ``token_ids`` after the prefix that ``parent`` names. At 128 bits two
    prefixes do not meet by chance, so tokens are not compared again."""
    return blake2b(parent + token_ids.tobytes(), digest_size=HASH_BYTES).digest()


def extend_chain(chain: list[bytes], root: bytes, token_ids: NDArray[np.int32], block_size: int) -> None:
    """Append the names of all full blocks of ``token_ids`` that ``chain`` does not have yet."""
    for start in range(len(chain) * block_size, len(token_ids) - block_size + 1, block_size):
        parent = chain[-1] if chain else root
        chain.append(block_hash(parent, token_ids[start : start + block_size]))
