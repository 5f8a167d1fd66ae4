"""What a server refuses for its text, and how often it did."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Literal

from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from rlserve.serving.content.base import ContentFilter, Found
from rlserve.serving.content.config import ContentConfig
from rlserve.serving.content.filter_stream import FilterStream

_THREADS = ThreadPoolExecutor(2, thread_name_prefix="filter")
"""Few: a long prompt takes a while, and others' streams go on meanwhile."""


class Filtering(Collector):
    """Looks at prompts and answers, and counts by kind what was refused."""

    def __init__(self, config: ContentConfig, content_filter: ContentFilter) -> None:
        self._config = config
        self._filter = content_filter
        self._num_refused: Counter[tuple[str, str]] = Counter()

    @property
    def filters_answers(self) -> bool:
        """Whether answers are looked at."""
        return self._config.filters_answers

    async def find(self, prompt: str) -> Found | None:
        """What a prompt is refused for; None lets it pass."""
        if not self._config.filters_prompts:
            return None
        return await asyncio.get_running_loop().run_in_executor(_THREADS, partial(self._filter.find, prompt, 0))

    def answer(self) -> FilterStream:
        """For the text of an answer."""
        return FilterStream(self._filter)

    def count(self, source: Literal["prompt", "answer"], kind: str) -> None:
        """Something was refused."""
        self._num_refused[source, kind] += 1

    def collect(self) -> Iterator[Metric]:
        """For Prometheus."""
        refused = CounterMetricFamily("rlserve:refused", "Prompts and answers refused", labels=["source", "kind"])
        for labels, number in list(self._num_refused.items()):
            refused.add_metric(labels, number)
        yield refused
