"""A reward that is a Python function of the user, plain or async."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from inspect import isawaitable, iscoroutinefunction
from typing import Any

from rlserve.rollout.rewards.base import Reward, RewardSample, Score
from rlserve.rollout.rewards.function_loading import find_function, location_in
from rlserve.rollout.rewards.score_values import read_score


class FunctionReward(Reward):
    """Calls the function once for each sample, in order; what must be awaited is awaited together."""

    def __init__(self, name: str) -> None:
        """
        Raises:
            RewardError: see ``find_function``.
        """
        self._name = name
        self._function = find_function(name)
        # One event loop for all groups: a client or a semaphore that the user's module keeps belongs to its loop.
        self._loop = asyncio.new_event_loop()

    @property
    def scores_at_once(self) -> bool:
        """Whether the function is a coroutine function."""
        return iscoroutinefunction(self._function)

    def score(self, samples: Sequence[RewardSample]) -> list[Score]:
        """What ``read_score`` makes of the value that the function returns for each sample."""
        values = [self._call(sample) for sample in samples]
        waiting = {index: value for index, value in enumerate(values) if isawaitable(value)}
        if waiting:
            awaited = self._loop.run_until_complete(_gather(list(waiting.values())))
            for index, value in zip(waiting, awaited, strict=True):
                values[index] = value
        return [self._read(sample, value) for sample, value in zip(samples, values, strict=True)]

    def _call(self, sample: RewardSample) -> Any:
        try:
            return self._function(sample)
        except Exception as error:  # the user's code may raise anything
            return error

    def _read(self, sample: RewardSample, value: Any) -> Score:
        if isinstance(value, BaseException):
            place = location_in(value, " at ")
            return Score(
                error=f"reward {self._name} raised on prompt {sample.id}: {type(value).__name__}{place}: {value}"
            )
        score = read_score(value)
        if score.error is not None:
            return replace(score, error=f"reward {self._name} {score.error} on prompt {sample.id}")
        return score


async def _gather(awaitables: Sequence[Awaitable[Any]]) -> list[Any]:
    """What each gives; an exception in the place of one that raised."""
    return list(await asyncio.gather(*awaitables, return_exceptions=True))
