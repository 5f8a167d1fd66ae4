"""Judging the model by held-out rows of the data."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass

from rlserve.controller.evaluator import Evaluator
from rlserve.controller.supervised.trainers import SupervisedTrainers
from rlserve.supervised.source import SupervisedSource
from rlserve.tracking import names


@dataclass(frozen=True, kw_only=True)
class HeldOutLoss:
    """What the algorithm says about the held-out rows."""

    judged: Mapping[str, float]
    """By name, with ``loss`` among them."""

    @property
    def share_right(self) -> float:
        """The accuracy, where the algorithm has one, or else the probability that the model gives to a token in the
        geometric mean: 1 over its perplexity."""
        accuracy = self.judged.get("accuracy")
        return math.exp(-self.judged["loss"]) if accuracy is None else accuracy

    def metrics(self) -> Mapping[str, float]:
        return {names.HELD_OUT: self.share_right, **{f"val/{name}": value for name, value in self.judged.items()}}

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:.4f}" for name, value in self.judged.items())


class HeldOutRows(Evaluator):
    """Lets the trainers compute the loss on all of them."""

    def __init__(self, source: SupervisedSource, trainers: SupervisedTrainers) -> None:
        self._source = source
        self._trainers = trainers

    async def score(self, step: int) -> HeldOutLoss:
        batch = await asyncio.to_thread(self._source.held_out)
        return HeldOutLoss(judged=await self._trainers.evaluate(batch))
