"""What a server takes out of prompts and answers, and how often it did."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from rlserve.serving.content.base import Masker
from rlserve.serving.content.config import ContentConfig
from rlserve.serving.content.mask_stream import MaskStream

_THREADS = ThreadPoolExecutor(2, thread_name_prefix="mask")
"""Few: a long prompt takes a while, and others' streams go on meanwhile."""


class Masking(Collector):
    """Masks prompts and answers, and counts by kind what it took out."""

    def __init__(self, config: ContentConfig, masker: Masker) -> None:
        self._config = config
        self._masker = masker
        self._num_masked: Counter[tuple[str, str]] = Counter()

    @property
    def masks_prompts(self) -> bool:
        """Whether prompts are read without what is found in them."""
        return self._config.masks_prompts

    @property
    def masks_answers(self) -> bool:
        """Whether answers are told without it."""
        return self._config.masks_answers

    async def prompt(self, text: str) -> str:
        """A prompt as the model may read it."""
        if not self.masks_prompts:
            return text
        stream = MaskStream(self._masker, partial(self._count, "prompt"))
        return await asyncio.get_running_loop().run_in_executor(_THREADS, lambda: stream.push(text) + stream.end())

    def answer(self) -> MaskStream:
        """For the text of an answer."""
        return MaskStream(self._masker, partial(self._count, "answer"))

    def collect(self) -> Iterator[Metric]:
        """For Prometheus."""
        masked = CounterMetricFamily("rlserve:masked", "Pieces taken out of texts, by kind", labels=["source", "kind"])
        for labels, number in list(self._num_masked.items()):
            masked.add_metric(labels, number)
        yield masked

    def _count(self, source: str, kind: str) -> None:
        self._num_masked[source, kind] += 1
