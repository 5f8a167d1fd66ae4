"""Time of decoding steps on one type, quick to ask for: for each number of samples, a line over the tokens they have.

Exact where the cost of a step is a line over them, with a floor, as a roofline's is.
"""

from __future__ import annotations

import math

from rlserve.simulate.costs.base import Costs

_FAR = 1_000_000
"""KV tokens at which reading them costs more than any floor."""


class DecodeCurve:
    """Steps of a batch that nobody joins or leaves: every one adds a token to each sample, and so to what the next one
    reads. Time runs evenly through them: whole steps take what they cost, parts of them nearly so."""

    def __init__(self, costs: Costs, type_name: str) -> None:
        self._costs = costs
        self._type_name = type_name
        self._lines: dict[int, tuple[float, float, float]] = {}

    def time_s(self, num_samples: int, num_kv_tokens: float, num_steps: float) -> float:
        """Of ``num_steps`` steps that begin with ``num_kv_tokens``."""
        first_s, growth_s = self._pace(num_samples, num_kv_tokens, num_steps)
        return num_steps * (first_s + 0.5 * growth_s * num_steps)

    def num_steps(self, num_samples: int, num_kv_tokens: float, time_s: float, most: float) -> float:
        """Steps that fit into ``time_s``, no more than ``most``: the inverse of :meth:`time_s` at that horizon."""
        first_s, growth_s = self._pace(num_samples, num_kv_tokens, most)
        if growth_s * time_s < 1e-9 * first_s * first_s:
            return min(most, time_s / first_s)
        return min(most, (math.sqrt(first_s * first_s + 2 * growth_s * time_s) - first_s) / growth_s)

    def _pace(self, num_samples: int, num_kv_tokens: float, num_steps: float) -> tuple[float, float]:
        """Seconds a step at the begin, and how they grow with each one, on the way to the last."""
        line = self._lines.get(num_samples)
        if line is None:
            line = self._lines[num_samples] = self._line(num_samples)
        floor_s, base_s, slope_s = line
        num_kv_tokens -= 0.5 * num_samples  # what a step reads is what there is at its begin
        first_s = max(floor_s, base_s + slope_s * num_kv_tokens)
        if num_steps <= 0:
            return first_s, 0.0
        last_s = max(floor_s, base_s + slope_s * (num_kv_tokens + num_samples * num_steps))
        return first_s, (last_s - first_s) / num_steps

    def _line(self, num_samples: int) -> tuple[float, float, float]:
        near, far = (self._costs.decode_step_s(self._type_name, num_samples, tokens) for tokens in (_FAR, 2 * _FAR))
        slope_s = (far - near) / _FAR
        return self._costs.decode_step_s(self._type_name, num_samples, 0), near - slope_s * _FAR, slope_s
