"""The generated tokens of one sample, column by column. NumPy, because it crosses process borders; no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BYTES_PER_TOKEN = 8 + 3 * 4


@dataclass(frozen=True, kw_only=True, eq=False)
class GeneratedTokens:
    """G tokens with what is known of each. Equal where all columns are; crosses process borders as one block of bytes,
    and what comes out there is read-only."""

    token_ids: NDArray[np.int32]
    """[G]"""
    log_probs: NDArray[np.float32]
    """[G] under the model itself: temperature 1, whole vocabulary (raw)."""
    behaviour_log_probs: NDArray[np.float32]
    """[G] under the distribution that was sampled from."""
    weight_versions: NDArray[np.int64]
    """[G] version of the weights that made each token."""

    @classmethod
    def of(
        cls,
        token_ids: Sequence[int] = (),
        log_probs: Sequence[float] = (),
        behaviour_log_probs: Sequence[float] = (),
        weight_versions: Sequence[int] = (),
    ) -> GeneratedTokens:
        """From lists or tuples."""
        return cls(
            token_ids=np.array(token_ids, dtype=np.int32),
            log_probs=np.array(log_probs, dtype=np.float32),
            behaviour_log_probs=np.array(behaviour_log_probs, dtype=np.float32),
            weight_versions=np.array(weight_versions, dtype=np.int64),
        )

    @classmethod
    def from_bytes(cls, block: bytes) -> GeneratedTokens:
        """What :meth:`to_bytes` made a block of. Read-only."""
        num_tokens = len(block) // _BYTES_PER_TOKEN
        return cls(
            weight_versions=np.frombuffer(block, np.int64, num_tokens),
            token_ids=np.frombuffer(block, np.int32, num_tokens, offset=8 * num_tokens),
            log_probs=np.frombuffer(block, np.float32, num_tokens, offset=12 * num_tokens),
            behaviour_log_probs=np.frombuffer(block, np.float32, num_tokens, offset=16 * num_tokens),
        )

    def to_bytes(self) -> bytes:
        """All columns in one block, in the byte order of this machine."""
        return b"".join(column.tobytes() for column in self._columns())

    def after(self, start: int) -> GeneratedTokens:
        """Views of what follows the first ``start`` tokens."""
        return self.between(start, len(self))

    def between(self, start: int, end: int) -> GeneratedTokens:
        """Views of the tokens from ``start`` to the one before ``end``."""
        return GeneratedTokens(
            token_ids=self.token_ids[start:end],
            log_probs=self.log_probs[start:end],
            behaviour_log_probs=self.behaviour_log_probs[start:end],
            weight_versions=self.weight_versions[start:end],
        )

    def __len__(self) -> int:
        """G."""
        return len(self.token_ids)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, GeneratedTokens):
            return NotImplemented
        pairs = zip(self._columns(), other._columns(), strict=True)
        return all(np.array_equal(ours, theirs) for ours, theirs in pairs)

    def __hash__(self) -> int:
        return hash(self.token_ids.tobytes())

    def __reduce__(self) -> tuple[Callable[[bytes], GeneratedTokens], tuple[bytes]]:
        """One block is quicker to send than four arrays, of which a message would hold thousands."""
        return GeneratedTokens.from_bytes, (self.to_bytes(),)

    def _columns(self) -> tuple[NDArray[Any], ...]:
        return (self.weight_versions, self.token_ids, self.log_probs, self.behaviour_log_probs)


NO_TOKENS = GeneratedTokens.of()
