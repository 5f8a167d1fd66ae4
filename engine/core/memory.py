"""What of an engine's memory is given away for a while: the KV cache, the weights, or both."""

from __future__ import annotations

from rlserve.engine.core.generation import Generation
from rlserve.engine.core.weight_versions import WeightVersions
from rlserve.engine.runner.model_runner import ModelRunner
from rlserve.engine.scheduling.scheduler import Scheduler
from rlserve.errors import IllegalTransitionError


class EngineMemory:
    """Owner of whether the KV cache is there."""

    def __init__(
        self, runner: ModelRunner, scheduler: Scheduler, generation: Generation, weights: WeightVersions
    ) -> None:
        self.is_kv_cache_released = False
        self._runner = runner
        self._scheduler = scheduler
        self._generation = generation
        self._weights = weights

    @property
    def is_released(self) -> bool:
        """Whether something of it is not there."""
        return self.is_kv_cache_released or self._weights.is_released

    def release(self, *, weights: bool, kv_cache: bool) -> None:
        """See ``Engine.release_memory``."""
        if (weights and self._weights.is_released) or (kv_cache and self.is_kv_cache_released):
            raise IllegalTransitionError("cannot release memory: it is released already")
        if ids := self._generation.ids:
            raise IllegalTransitionError(f"cannot release memory: {len(ids)} requests are in flight, abort them first")
        if weights and self._weights.is_updating:
            raise IllegalTransitionError("cannot release memory: a weight update is open, finish or abandon it first")
        if kv_cache:
            self._scheduler.set_weight_version(self._weights.version)
            self._runner.release_kv_cache()
            self.is_kv_cache_released = True
        if weights:
            self._weights.release()

    def restore(self, *, weights: bool, kv_cache: bool) -> None:
        """See ``Engine.restore_memory``."""
        weights, kv_cache = weights and self._weights.is_released, kv_cache and self.is_kv_cache_released
        if not weights and not kv_cache:
            raise IllegalTransitionError("cannot restore memory: nothing is released")
        if weights:
            self._weights.restore()
        if kv_cache:
            self._runner.restore_kv_cache()
            self.is_kv_cache_released = False
