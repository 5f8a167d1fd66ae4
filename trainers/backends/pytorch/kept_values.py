"""The critic's forward passes, kept from when its values are asked for until its gradient is.

    score ──► values, each with its graph ──► advantages … ──► loss of the values ──► backward through the graphs

A step of one update needs them twice: the same critic on the same samples.
"""

from __future__ import annotations

from torch import Tensor

from rlserve.trainers.backends.pytorch.shards import LogicalShard


class KeptValues:
    """Of the passes of one batch."""

    def __init__(self) -> None:
        self._values: dict[bytes, Tensor] = {}
        """[a] with its graph, by the samples of the pass."""

    def keep(self, part: LogicalShard, values_a: Tensor) -> None:
        """Keep what the critic said about a pass, and with it all that going backward needs."""
        self._values[part.samples.tobytes()] = values_a

    def take(self, part: LogicalShard) -> Tensor | None:
        """What was kept of a pass, which is gone then; None where nothing was."""
        return self._values.pop(part.samples.tobytes(), None)

    def clear(self) -> None:
        """Forget all: the samples or the critic change."""
        self._values.clear()
