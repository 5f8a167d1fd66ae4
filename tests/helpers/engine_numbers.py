"""An engine's numbers as a test likes them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from rlserve.engine import EngineConfig
from rlserve.engine.stats.ended_samples import EndedSamples
from rlserve.engine.stats.engine_stats import AdapterUse, EngineStats
from rlserve.engine.stats.metrics import Histogram, HistogramCounter, cache_config


def some_stats(histogram: Histogram | None = None, **numbers: Any) -> EngineStats:
    """Numbers that are 0 where none is given, and the same histogram for all that are one."""
    histogram = histogram or HistogramCounter((0.1, 1.0)).snapshot()
    ended = EndedSamples(**{field.name: histogram for field in fields(EndedSamples)})
    others = {field.name: histogram if field.type == "Histogram" else 0 for field in fields(EngineStats)}
    config = cache_config(EngineConfig(), 8, 64)
    others |= {"ended_samples": ended, "cache_config": config, "adapters": AdapterUse(num_loaded=0), "num_blocks": 8}
    return EngineStats(**(others | numbers))
