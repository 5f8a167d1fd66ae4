"""Operations on replicas that are processes of this server.

New weights come in two phases, so that a folder which one replica refuses changes nothing anywhere:

::

    stage, all replicas, beside the running model ──► one refuses ──► discard, all as before
                                                  └─► swap, each between two steps of its own
                                                           └── a replica that was away, failed or is late starts anew
                                                               with them, unless it has begun with them meanwhile
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeGuard

from rlserve.errors import WorkerLostError
from rlserve.serving.admin.base import NewWeights, Operations, Profile, ProfileBounds, ReplicaStatus
from rlserve.serving.admin.profiles import Profiles
from rlserve.serving.protocol.errors import ApiError
from rlserve.serving.replicas.messages import Done, Order, OrderAction
from rlserve.serving.replicas.pool import ReplicaPool
from rlserve.serving.replicas.replica import Replica
from rlserve.serving.replicas.state import ReplicaState

logger = logging.getLogger(__name__)

_RUNNING = (ReplicaState.READY, ReplicaState.SUSPECT, ReplicaState.DRAINING)


class PoolOperations(Operations):
    """
    Args:
        timeout_s: most time until all replicas have carried an order out.
        profile_folder: of traces; None refuses profiles.
    """

    def __init__(self, pool: ReplicaPool, *, timeout_s: float, profile_folder: Path | None = None) -> None:
        self._pool = pool
        self._timeout_s = timeout_s
        self._weight_version = 0
        self._lock = asyncio.Lock()
        self._profiles = Profiles(profile_folder)

    async def status(self) -> list[ReplicaStatus]:
        """Of all replicas, as of their last beats."""
        return [
            ReplicaStatus(
                name=replica.name,
                state=replica.state,
                num_samples=self._pool.num_samples_of(replica.name),
                weight_version=replica.weight_version,
                is_drained=replica.name in self._pool.drained,
                tokens_per_s=replica.tokens_per_s,
                process_id=replica.process_id,
            )
            for replica in self._pool.replicas.values()
        ]

    async def pause(self) -> None:
        """Replicas that start meanwhile stand still from their beginning."""
        await self._stop_or_go(is_paused=True)

    async def resume(self) -> None:
        """Replicas go on where they stood."""
        await self._stop_or_go(is_paused=False)

    async def load_weights(self, folder: Path) -> NewWeights:
        """Stage everywhere, then swap everywhere."""
        async with self._lock:
            running = self._running()
            if not running:
                raise ApiError(503, "no replica is ready to take weights", headers={"Retry-After": "5"})
            staged = await self._stage(running, folder)
            self._weight_version += 1
            for replica in self._pool.replicas.values():
                replica.start = replace(replica.start, model_path=str(folder), weight_version=self._weight_version)
            swapped = await self._order(staged, "swap", weight_version=self._weight_version)
            done = {replica.name: each for replica, each in zip(staged, swapped, strict=True) if _is_done(each)}
            for replica in self._pool.replicas.values():
                if replica.name in done:
                    replica.weight_version = self._weight_version  # its next beat says so too
                elif replica.state is not ReplicaState.IDLE and replica.started_version < self._weight_version:
                    logger.warning("replica %s starts anew with version %d", replica.name, self._weight_version)
                    replica.kill()
            logger.info("version %d of the weights comes from %s", self._weight_version, folder)
            pause_s = max((each.pause_s for each in done.values()), default=0.0)
            return NewWeights(weight_version=self._weight_version, pause_s=pause_s, num_replicas=len(done))

    async def load_adapter(self, name: str, folder: Path) -> None:
        """Between two steps of each; a replica that was away starts anew with it."""
        async with self._lock:
            running = self._running()
            if not running:
                raise ApiError(503, "no replica is ready to take an adapter", headers={"Retry-After": "5"})
            results = await self._order(running, "load_adapter", model_path=str(folder), adapter=name)
            loaded = [replica for replica, each in zip(running, results, strict=True) if _is_done(each)]
            refused = next((each for each in results if isinstance(each, Done) and each.error is not None), None)
            if refused is not None:
                before = running[0].start.adapters.get(name)
                if before is None:
                    await self._order(loaded, "unload_adapter", adapter=name)
                else:
                    await self._order(loaded, "load_adapter", model_path=before, adapter=name)
                raise ApiError(400, f"the adapter is refused: {refused.error}", "lora_path")
            self._set_adapters({**running[0].start.adapters, name: str(folder)}, loaded)
            logger.info("adapter %s comes from %s", name, folder)

    async def unload_adapter(self, name: str) -> None:
        """Between two steps of each."""
        async with self._lock:
            running = self._running()
            results = await self._order(running, "unload_adapter", adapter=name)
            done = [replica for replica, each in zip(running, results, strict=True) if _is_done(each)]
            start = next(iter(self._pool.replicas.values())).start
            self._set_adapters({each: path for each, path in start.adapters.items() if each != name}, done)
            logger.info("adapter %s is unloaded", name)

    def _set_adapters(self, adapters: Mapping[str, str], done: Sequence[Replica]) -> None:
        """What all replicas begin with from now on; those that do not have it yet begin anew."""
        for replica in self._pool.replicas.values():
            replica.start = replace(replica.start, adapters=adapters)
            if replica not in done and replica.state is not ReplicaState.IDLE:
                logger.warning("replica %s starts anew with adapters %s", replica.name, ", ".join(adapters) or "none")
                replica.kill()

    def drain(self, replica: str) -> None:
        """What the replica has ends there."""
        self._pool.drained.add(self._known(replica))
        logger.info("replica %s is drained", replica)

    def undrain(self, replica: str) -> None:
        """It gets requests again."""
        self._pool.drained.discard(self._known(replica))
        logger.info("replica %s takes requests again", replica)

    def begin_profile(self, replica: str | None, bounds: ProfileBounds) -> None:
        """Of one that is running; the one with the most to do if none is named."""
        running = [each for each in self._running() if replica is None or each.name == self._known(replica)]
        if not running:
            raise ApiError(503, "no replica is ready to be profiled", headers={"Retry-After": "5"})
        self._profiles.begin(max(running, key=lambda each: self._pool.num_samples_of(each.name)), bounds)

    async def end_profile(self) -> Profile:
        """Its trace is written then."""
        return await self._profiles.end()

    async def last_profile(self) -> Profile:
        """Its trace is written then."""
        return await self._profiles.last()

    def _known(self, name: str) -> str:
        if name not in self._pool.replicas:
            known = ", ".join(self._pool.replicas)
            raise ApiError(404, f"there is no replica {name[:200]!r}; there are {known}", "replica")
        return name

    def _running(self) -> list[Replica]:
        return [replica for replica in self._pool.replicas.values() if replica.state in _RUNNING]

    async def _stop_or_go(self, *, is_paused: bool) -> None:
        action: OrderAction = "pause" if is_paused else "resume"
        async with self._lock:
            for replica in self._pool.replicas.values():
                replica.start = replace(replica.start, is_paused=is_paused)
                if replica.state is ReplicaState.STARTING:
                    replica.tell(action)  # it hears it when its engine is loaded
            self._check_in_time(action, await self._order(self._running(), action))

    async def _stage(self, running: Sequence[Replica], folder: Path) -> list[Replica]:
        """Those that have the weights beside their model."""
        results = await self._order(running, "stage", model_path=str(folder))
        refused = next((each for each in results if isinstance(each, Done) and each.error is not None), None)
        staged = [replica for replica, each in zip(running, results, strict=True) if _is_done(each)]
        if refused is not None or any(isinstance(each, TimeoutError) for each in results):
            await self._order(staged, "discard")
        self._check_in_time("stage", results)
        if refused is not None:
            raise ApiError(400, f"the weights are refused, and the old ones kept: {refused.error}", "path")
        if not staged:
            raise ApiError(503, "the replicas were lost meanwhile: nothing has changed", headers={"Retry-After": "5"})
        return staged

    async def _order(
        self,
        replicas: Sequence[Replica],
        action: OrderAction,
        *,
        model_path: str = "",
        weight_version: int = 0,
        adapter: str = "",
    ) -> list[Done | WorkerLostError | TimeoutError]:
        """Have an order carried out by all at once; what became of it with each."""
        order = Order(action=action, model_path=model_path, weight_version=weight_version, adapter=adapter)

        async def one(replica: Replica) -> Done | WorkerLostError | TimeoutError:
            try:
                async with asyncio.timeout(self._timeout_s):
                    return await replica.order(order)
            except (WorkerLostError, TimeoutError) as error:  # the successor of a lost one is told when it starts
                return error

        return await asyncio.gather(*map(one, replicas))

    def _check_in_time(self, action: OrderAction, results: Sequence[Done | WorkerLostError | TimeoutError]) -> None:
        if any(isinstance(each, TimeoutError) for each in results):
            raise ApiError(503, f"{action}: not done by all replicas after {self._timeout_s:g} s")


def _is_done(result: Done | WorkerLostError | TimeoutError) -> TypeGuard[Done]:
    return isinstance(result, Done) and result.error is None
