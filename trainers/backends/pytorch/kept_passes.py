"""Forward passes for values, kept from when these are asked for until the gradient is.

    score ──► values, each with its graph ──► advantages … ──► loss of the values ──► backward through the graphs

A step of one update needs them twice: the same critic on the same samples. Where the critic shares the policy's trunk,
hidden states are kept in place of values, and the policy's loss goes back through them too.
"""

from __future__ import annotations

from torch import Tensor

from rlserve.trainers.backends.pytorch.shards import LogicalShard


class KeptPasses:
    """Of the passes of one batch."""

    def __init__(self) -> None:
        self._outputs: dict[bytes, Tensor] = {}
        """[a] values or [a, H] states with their graph, by the samples of the pass."""

    def keep(self, part: LogicalShard, outputs: Tensor) -> None:
        """Keep what came out of a pass, and with it all that going backward needs."""
        self._outputs[part.samples.tobytes()] = outputs

    def take(self, part: LogicalShard) -> Tensor | None:
        """What was kept of a pass, which is gone then; None where nothing was."""
        return self._outputs.pop(part.samples.tobytes(), None)

    def clear(self) -> None:
        """Forget all: the samples or the critic change."""
        self._outputs.clear()
