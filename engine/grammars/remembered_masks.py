"""Masks that were computed before, of regular expressions: these have few places, and all samples come by again."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from rlserve.engine.grammars.automaton import Automaton

MaskPlace = tuple[Automaton, int]
"""An expression and a state of it."""
MAX_MASK_BYTES = 2**26
"""Of all that is remembered for an engine; of more, what was wanted last."""


class RememberedMasks:
    """Shared by all grammars of an engine.

    Args:
        mask_bytes: of each.
    """

    def __init__(self, mask_bytes: int) -> None:
        self._max_masks = max(1, MAX_MASK_BYTES // mask_bytes)
        self._masks: OrderedDict[MaskPlace, NDArray[np.int32]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._masks)

    def get(self, place: MaskPlace) -> NDArray[np.int32] | None:
        """[W] the mask there, if it is remembered."""
        mask_W = self._masks.get(place)
        if mask_W is not None:
            self._masks.move_to_end(place)
        return mask_W

    def put(self, place: MaskPlace, mask_W: NDArray[np.int32]) -> None:
        """Remember a copy."""
        self._masks[place] = mask_W.copy()
        if len(self._masks) > self._max_masks:
            self._masks.popitem(last=False)
