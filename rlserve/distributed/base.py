"""A rank's place in a group of processes. Plain data, no torch."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class RankPlace:
    """One rank's place in a group, and where the ranks of that group meet."""

    rank: int
    num_ranks: int
    host: str
    """Address of rank 0's machine; its store listens on this address alone."""
    port: int
    secret: str = field(repr=False)
    """The same on all ranks, and unguessable, such as ``secrets.token_hex(32)``: nobody without it can take part."""

    def __post_init__(self) -> None:
        assert 0 <= self.rank < self.num_ranks
