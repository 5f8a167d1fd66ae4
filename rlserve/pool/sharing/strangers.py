"""Slots that processes of nobody have: of a run that does not share, or of one that died and is not cleared away."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from rlserve.pool.sharing.base import Place

WINDOW_S = 10.0
"""Longer than a worker takes from being allowed to having its slot, and from being ended until Ray has it back."""


class Strangers:
    """Counts what somebody has and no run says that it has, for as long as the window."""

    def __init__(self) -> None:
        self._readings: deque[tuple[float, Mapping[Place, int]]] = deque()

    def note(self, unexplained: Mapping[Place, int], *, now_s: float) -> None:
        """What is neither free nor a run's, now."""
        self._readings.append((now_s, unexplained))
        while len(self._readings) > 1 and self._readings[1][0] <= now_s - WINDOW_S:
            self._readings.popleft()

    @property
    def slots(self) -> Mapping[Place, int]:
        """The least of the window; nothing before it is over."""
        (first_s, first), (last_s, _) = self._readings[0], self._readings[-1]
        if last_s - first_s < WINDOW_S:
            return {}
        return {place: min(reading.get(place, 0) for _, reading in self._readings) for place in first}
