"""A worker's rank in the engine of its gang: rank 0 has the engine, the others follow it in a thread.

What is formed once stays warm: the ranks keep their connections and compiled programs while the worker trains, with
their memory released, and go on when the gang rolls out again. A gang that lost a worker is formed anew.
"""

from __future__ import annotations

import threading
from dataclasses import replace

from rlserve.distributed.base import RankPlace
from rlserve.engine import Engine, EngineConfig, FollowerThread, join_ranks
from rlserve.engine.models.factory import read_model_spec
from rlserve.errors import RlserveError
from rlserve.pool.base import WorkerSpec
from rlserve.pool.imports import look_at_all
from rlserve.pool.pacing.base import Pace
from rlserve.pool.roles.memory import kv_cache_bytes, total_bytes

_END_S = 20.0
"""How long a thread that follows may take to end once the rank that it follows is lost or has closed its engine."""


class EngineRank:
    """Makes, keeps and ends one rank of an engine; calls are serialised by a lock."""

    def __init__(self, spec: WorkerSpec, pace: Pace, *, timeout_s: float) -> None:
        """``timeout_s`` bounds how long the ranks wait for each other, to join and in each operation."""
        self._spec = spec
        self._pace = pace
        self._config = _engine_config(spec)
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._place: RankPlace | None = None
        self._engine: Engine | None = None
        self._follower: FollowerThread | None = None

    def size_cache(self, *, weight_bytes: int) -> None:
        """Where the run says what share of the memory is the engine's, size its KV cache by that.

        Raises:
            UserError: it is too little.
        """
        share, config = self._spec.engine_memory_share, self._config
        if share is not None and self._engine is None:
            budget_bytes, spec = int(share * total_bytes(self._spec.device)), read_model_spec(self._spec.model_path)
            num_bytes = kv_cache_bytes(config, spec, budget_bytes=budget_bytes, weight_bytes=weight_bytes)
            self._config = replace(config, kv_cache_bytes=num_bytes)

    def lead(self, place: RankPlace | None) -> Engine:
        """The engine, with its memory taken. ``place`` is that of rank 0; None for an engine of this worker alone.

        Raises:
            WorkerFailedError: another rank is lost.
            DeadlineExceededError: not all ranks joined in time.
        """
        with self._lock, self._pace.waking():
            if self._engine is not None and place == self._place:
                self._engine.restore_memory()
            else:
                self._end()
                self._engine = self._form(place)
                self._place = place
            return self._engine

    def follow(self, place: RankPlace) -> None:
        """Follow rank 0 of the same group. Returns at once.

        Raises:
            WorkerFailedError: the thread that followed another rank 0 does not end.
        """
        with self._lock:
            if self._follower is None or self._follower.has_ended or place != self._place:
                self._end()
                self._follower = FollowerThread(self._spec.model_path, self._config, place, timeout_s=self._timeout_s)
                self._place = place

    def end(self) -> None:
        """Forget the engine, or follow no more. The other ranks have to be formed anew.

        Raises:
            WorkerFailedError: the thread that follows does not end, since its rank 0 goes on.
        """
        with self._lock:
            self._end()

    def _form(self, place: RankPlace | None) -> Engine:
        if place is None:
            return Engine(self._spec.model_path, self._config, load_weights=False, clock=self._pace.now_s)
        group = join_ranks(place, self._config, timeout_s=self._timeout_s)
        try:
            return Engine(self._spec.model_path, self._config, load_weights=False, ranks=group, clock=self._pace.now_s)
        except BaseException:
            group.close()  # so that the others fail at once
            raise

    def _end(self) -> None:
        engine, follower = self._engine, self._follower
        self._engine = self._place = None
        if engine is not None:
            engine.close()
            look_at_all()
        if follower is not None:
            try:
                follower.wait(_END_S)
            except RlserveError:  # why it ended is in the log
                if not follower.has_ended:
                    raise
            self._follower = None


def _engine_config(spec: WorkerSpec) -> EngineConfig:
    """Where the run does not say, the engine computes on the slot's device: a process can see GPUs that are
    not its own."""
    return replace(spec.engine, device=spec.device) if spec.engine.device == "auto" else spec.engine
