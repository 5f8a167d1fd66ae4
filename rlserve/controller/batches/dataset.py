"""Batches of rows of a data set, which are there at once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from rlserve.controller.batches.base import BatchSource, Taken
from rlserve.supervised.source import SupervisedSource
from rlserve.trainers.batch import Batch


class DatasetBatches(BatchSource):
    """Hands out the source's batches in their order."""

    def __init__(self, source: SupervisedSource) -> None:
        self._source = source

    async def next(self, stop: asyncio.Event) -> Taken | None:
        if stop.is_set():
            return None
        return Taken(num_groups=self._source.batch_size, build=self._source.next, metrics={})

    def note_trained(self, batch: Batch, step: int, metrics: Mapping[str, float]) -> None:
        """The source goes on."""
        self._source.advance()
