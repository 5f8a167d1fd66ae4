"""Random numbers of the sampler: a hash, so that batch, replica and preemption do not matter."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MASK_64 = 2**64 - 1


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of SplitMix64 (Steele, Lea and Flood 2014): every input bit moves every output bit."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _mix_one(state: int) -> int:
    """``_mix`` of one number modulo 2^64, which NumPy takes ten times as long for."""
    state &= _MASK_64
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & _MASK_64
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & _MASK_64
    return state ^ (state >> 31)


def seed_of(request_id: str) -> int:
    """The seed of a request that gives none."""
    return int.from_bytes(blake2b(request_id.encode(errors="surrogatepass"), digest_size=8).digest(), "little")


def stream_key(seed: int, sample_index: int) -> np.uint64:
    """Key of the random numbers of one sample. The samples of a group get unlike streams."""
    golden = int(_GOLDEN)
    of_seed, of_index = _mix_one(seed + golden), _mix_one(sample_index + golden)
    return np.uint64(_mix_one(of_seed ^ (of_index * golden)))


def stream_keys(seeds_B: NDArray[np.uint64], sample_indices_B: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """[B] what :func:`stream_key` gives for seeds, which are modulo 2^64, and samples."""
    return _mix(_mix(seeds_B + _GOLDEN) ^ (_mix(sample_indices_B + _GOLDEN) * _GOLDEN))


def uniforms(keys_B: NDArray[np.uint64], positions_B: NDArray[np.int32]) -> NDArray[np.float64]:
    """[B] numbers in (0, 1), one for the generated token at each position (from 0) of each stream."""
    state = _mix(keys_B + (positions_B.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
    return ((state >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
