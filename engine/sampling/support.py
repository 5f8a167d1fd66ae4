"""Which tokens a draw could have given, packed: under top-k a few numbers, under top-p often most of the vocabulary.

A trainer that computes the log-probability of the drawn token over the same tokens, ``logit[token] -
logsumexp(logits[kept])`` at the same temperature, compares like with like: over the whole vocabulary the ratio of the
two policies would carry the probability of what was cut away.

Legend: V vocabulary.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_IDS, _BITS = b"\x00", b"\x01"


def pack_support(kept_V: NDArray[np.bool_]) -> bytes:
    """The shorter of two forms, told apart by the first byte: 0 and the kept ids as little-endian 32-bit numbers,
    or 1 and one bit per token, lowest first. Nothing at all where every token is kept."""
    if kept_V.all():
        return b""
    token_ids = np.flatnonzero(kept_V)
    if 4 * len(token_ids) < len(kept_V) // 8:
        return _IDS + token_ids.astype("<u4").tobytes()
    return _BITS + np.packbits(kept_V, bitorder="little").tobytes()


def unpack_support(packed: bytes, vocab_size: int) -> NDArray[np.bool_]:
    """[V] whether each token was kept."""
    if not packed:
        return np.ones(vocab_size, dtype=np.bool_)
    if packed[:1] == _BITS:
        bits = np.frombuffer(packed, dtype=np.uint8, offset=1)
        return np.unpackbits(bits, count=vocab_size, bitorder="little").astype(np.bool_)
    kept_V = np.zeros(vocab_size, dtype=np.bool_)
    kept_V[np.frombuffer(packed, dtype="<u4", offset=1)] = True
    return kept_V
