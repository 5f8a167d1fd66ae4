"""When requests of an open loop arrive, in seconds from its beginning."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator


def arrival_times(rate: float, *, burstiness: float, rng: random.Random) -> Iterator[float]:
    """Endlessly, with gaps from a gamma distribution of mean ``1 / rate``.

    ``burstiness`` is its shape k, as in vLLM: gaps have the coefficient of variation 1/√k, so 1 is a Poisson process,
    less is burstier, more is more even, and infinity has all gaps alike. A rate of infinity has all at once.
    """
    time_s = 0.0
    while True:
        if math.isfinite(rate):
            even = math.isinf(burstiness)
            time_s += 1 / rate if even else rng.gammavariate(burstiness, 1 / (rate * burstiness))
        yield time_s
