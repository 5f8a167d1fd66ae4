"""Versions of the weights on their way from the trainers to every replica, beside the training.

::

    step v ─► snapshot (at the step boundary) ─► step v+1 … the training goes on
                  │
                  ▼ one at a time
               send by those who have it   ─► chain ─► each replica takes, at its own pace, the links that it lacks:
                  whole, or what changed               whole ◄─ delta ◄─ delta …   in one call, loaded once

What always holds:

1. What is published as version v is the state after step v: it is sent from a snapshot taken at a step boundary, before
   the next step. If a sender is lost, any member that has not stepped since takes the snapshot anew, or all do where
   each has a part of it; once the group has stepped, version v is not published any more, and the next one is.
2. A replica's version only grows, and is always one that was published; where a newer one came meanwhile, those in
   between are skipped.
3. Once nothing is under way (``settled``), every replica has the newest version, or was reported as failed.
4. A trainer holds two snapshots at most: the one that is being sent, and the newest, which replaces one that waits.
   With deltas, it keeps the one that it sent last besides.
5. A delta is based on the version that was sent before it, so versions that were superseded leave no gap. Whoever has
   the version of one link gets to the newest by the links after it, and anybody by all (``weights.chain``). The next
   version is whole where the chain is ``anchor_every`` links long, where a link is gone or was refused, and where the
   sender is another: it has no base. Of several senders, each has its own.
6. A replica that refuses a chain with deltas gets everything from a whole version on, once: the newest is sent again,
   whole, unless a newer one is there by then. One that refuses that too, or whose engine holds something else than was
   published, stops the run.
7. A replica serves a version for the router once it has computed the canary as the trainer did (``canary``), where the
   version has one.

Nobody waits here for the bound on staleness: the router gives no group to a replica that is too old for it, so the
batch is not ready before a replica has the version that it needs.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from rlserve.controller.busy_time import BusyTime
from rlserve.controller.canary import CanaryWatch, Taken
from rlserve.controller.context import RunContext
from rlserve.controller.events import WeightsNotTaken, WeightsTaken
from rlserve.controller.group_copies import GroupCopies, MemberCopy
from rlserve.controller.ports import Fleet, WorkerHandle
from rlserve.controller.trainer_group import TrainerGroup
from rlserve.controller.weight_snapshots import WeightSnapshot, WeightSnapshots
from rlserve.controller.weight_source import WeightSource
from rlserve.errors import (
    ArgumentLostError,
    DeadlineExceededError,
    RlserveError,
    WeightsRefusedError,
)
from rlserve.remote import answer
from rlserve.tracking.events import WeightEvent
from rlserve.weights.chain import Link, WeightChain
from rlserve.weights.offer import Holding, Offer, Receipt

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Publication:
    """A version that replicas can take."""

    link: Link
    snapshot: WeightSnapshot
    published_s: float

    @property
    def offer(self) -> Offer:
        return self.link.offer


@dataclass(kw_only=True, eq=False)
class _Replica:
    worker: WorkerHandle
    holding: Holding
    load_s: float
    updating: asyncio.Task[None] | None = None


class WeightSync(WeightSource):
    """Of trainers and replicas that are different workers."""

    def __init__(
        self,
        run: RunContext,
        fleet: Fleet,
        trainers: TrainerGroup,
        canary: CanaryWatch,
        *,
        timeout_s: float,
        anchor_every: int,
        weights_are_spread: bool,
    ) -> None:
        """``timeout_s`` is the deadline of one worker sending or taking one version; of ``anchor_every`` versions that
        are sent, one at least is whole. ``weights_are_spread``: each trainer has a part of the policy."""
        self._run = run
        self._clock = run.clock
        self._fleet = fleet
        self._canary = canary
        self._timeout_s = timeout_s
        self._snapshots = WeightSnapshots(run, fleet, trainers, timeout_s=timeout_s, are_spread=weights_are_spread)
        self._chain = WeightChain(anchor_every)
        self._next: WeightSnapshot | None = None
        self._publisher: asyncio.Task[None] | None = None
        self._published: _Publication | None = None
        self._has_published = asyncio.Event()
        self._replacing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        """All that is under way, for replicas that have left meanwhile too: what they refuse is sent again."""
        self._replicas: dict[str, _Replica] = {}
        self._num_taking: Counter[int] = Counter()
        self._busy = BusyTime(run.clock)
        self._publish_s = 0.0
        self._swap_s = 0.0

    @property
    def version(self) -> int:
        """The newest published version; -1 before the first."""
        return -1 if self._published is None else self._published.offer.version

    def metrics(self) -> dict[str, float]:
        """What the newest versions took; names are documented in ``rlserve.tracking.names``."""
        found = {
            "weights/version": self.version,
            "weights/snapshot_s": self.snapshot_s,
            "weights/publish_s": self._publish_s,
            "weights/swap_s": self._swap_s,
            "weights/load_s": max((replica.load_s for replica in self._replicas.values()), default=0.0),
        }
        if self._published is not None:
            offer = self._published.offer
            found |= {"weights/sent_bytes": offer.num_bytes, "weights/whole_bytes": offer.num_whole_bytes}
            if offer.changed_share is not None:
                found["weights/changed_share"] = offer.changed_share
        return found | self._canary.metrics()

    @property
    def busy_s(self) -> float:
        """Seconds in which a version was under way, since the run began."""
        return self._busy.total_s

    # -- publishing ------------------------------------------------------------------------------------------

    def copies(self, version: int) -> GroupCopies:
        """The snapshot that is published as this version."""
        return self._snapshots.copies(version)

    async def publish(self, version: int, copies: Sequence[MemberCopy] = ()) -> None:
        """Take a snapshot of the trainers' weights as ``version``, unless ``copies`` are one, and return; all else
        happens in the background.

        Raises:
            WorkerFailedError: no member of the trainers' group is left.
        """
        snapshot = self._snapshots.of(version, copies) if copies else await self._snapshots.take(version)
        self.snapshot_s = snapshot.duration_s
        superseded, self._next = self._next, snapshot
        if superseded is not None:
            logger.info("version %d of the weights is superseded before it was sent", superseded.version)
            await self._snapshots.drop(superseded)
        if self._publisher is None:
            self._publisher = self._under_way(self._publish())

    async def settled(self) -> None:
        """Wait until nothing is under way. Every single step of it has a deadline, which names its culprit."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """The run is over: break off what is under way, and let a trainer remove what was sent."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._published is not None:
            await self._snapshots.discard_sent()

    async def _publish(self) -> None:
        try:
            while self._next is not None:
                snapshot, self._next = self._next, None
                publication = await self._send(snapshot)
                if publication is not None:
                    self._offer(publication)
        finally:
            self._publisher = None

    async def _send(self, snapshot: WeightSnapshot | None) -> _Publication | None:
        """Send a snapshot; if a sender is lost, let others send that version. None where nobody has it."""
        while snapshot is not None:
            needed = sorted({*self._chain.versions, *self._num_taking.elements()})
            link = await self._snapshots.send(snapshot, self._chain.next_base, needed)
            if link is not None:
                return _Publication(link=link, snapshot=snapshot, published_s=self._clock.now())
            snapshot = await self._snapshots.take_again(snapshot)
        return None

    def _offer(self, publication: _Publication) -> None:
        """Let all replicas have it.

        Raises:
            WeightsRefusedError: it is the newest version again, with other weights.
        """
        offer, before = publication.offer, self._published
        if offer.version < self.version:
            return  # a newer one came while this one was sent again
        if before is not None and offer.version == self.version and offer.fingerprint != before.offer.fingerprint:
            raise WeightsRefusedError(
                f"version {offer.version} published again has fingerprint {offer.fingerprint:016x}, "
                f"not {before.offer.fingerprint:016x}"
            )
        self._published = publication
        self._chain.add(publication.link)
        self._publish_s = publication.published_s - publication.snapshot.taken_s
        self._has_published.set()
        self._has_published = asyncio.Event()
        self._record(offer.version, None, self._publish_s, pause_s=publication.snapshot.duration_s)
        for slot_id in tuple(self._replicas):
            self._update(slot_id)

    # -- replicas --------------------------------------------------------------------------------------------

    async def take(self, slot_id: str) -> Receipt:
        """Let a worker that is about to serve take the newest version; ``add`` it once it serves.

        Raises:
            WeightsRefusedError: its engine does not hold what was published.
            WorkerFailedError: it died, failed, or did not take the version in time.
        """
        return await self._taken(slot_id, self._fleet[slot_id], None)

    async def add(self, slot_id: str, receipt: Receipt) -> None:
        """Bring a replica to every version from now on; returns when it has the newest one, or was reported."""
        self._replicas[slot_id] = _Replica(worker=self._fleet[slot_id], holding=receipt.holding, load_s=receipt.load_s)
        self._update(slot_id)
        while (replica := self._replicas.get(slot_id)) is not None and replica.updating is not None:
            await asyncio.wait([replica.updating])

    def remove(self, slot_id: str) -> None:
        """A replica leaves or is lost: it gets nothing more, and what becomes of a version under way is no matter."""
        self._replicas.pop(slot_id, None)

    def _updates(self) -> list[asyncio.Task[None]]:
        return [replica.updating for replica in self._replicas.values() if replica.updating is not None]

    def _update(self, slot_id: str) -> None:
        replica = self._replicas[slot_id]
        if replica.updating is None and self._chain.links_for(replica.holding):
            replica.updating = self._under_way(self._bring_up(slot_id, replica))

    async def _bring_up(self, slot_id: str, replica: _Replica) -> None:
        try:
            while self._replicas.get(slot_id) is replica and self._chain.links_for(replica.holding):
                start = self._clock.now()
                receipt = await self._taken(slot_id, replica.worker, replica.holding)
                if self._replicas.get(slot_id) is replica:
                    replica.holding, replica.load_s = receipt.holding, receipt.load_s
                    self._run.events.emit(
                        WeightsTaken(
                            slot_id=slot_id,
                            version=receipt.version,
                            duration_s=self._clock.now() - start,
                            pause_s=receipt.load_s,
                        )
                    )
        except WeightsRefusedError:
            raise  # what the engine holds is not what was published: nothing it says can be trusted
        except RlserveError as error:
            if self._replicas.get(slot_id) is replica:
                self.remove(slot_id)
                self._run.events.emit(WeightsNotTaken(slot_id=slot_id, error=error))
        finally:
            replica.updating = None
            if self._published is not None and not self._updates():
                self._swap_s = self._clock.now() - self._published.published_s

    async def _taken(self, slot_id: str, worker: WorkerHandle, holding: Holding | None) -> Receipt:
        """Let a worker take the newest version, and everything anew where the canary says so."""

        async def take(anew: bool) -> Taken:
            return await self._loaded(slot_id, worker, None if anew else holding)

        return await self._canary.accepted(slot_id, worker, take)

    async def _loaded(self, slot_id: str, worker: WorkerHandle, holding: Holding | None) -> Taken:
        """Let a worker take the newest version. What is gone with its sender's node is sent again: whoever was to
        receive it is not to blame. So is what changed, whole, for one that cannot build on what it has."""
        start, was_refused = self._clock.now(), False
        while True:
            publication, links = self._published, self._chain.links_for(holding)
            assert publication is not None, "nothing was published yet"
            try:
                receipt = await self._deliver(links, slot_id, worker)
            except ArgumentLostError as error:
                logger.warning("%s", error)
            except WeightsRefusedError as error:
                if was_refused or all(link.offer.base is None for link in links):
                    raise
                logger.warning("the replica on %s gets the weights whole: %s", slot_id, error)
                was_refused, holding = True, None
            else:
                self._prove(receipt, publication.offer, slot_id)
                self._record(receipt.version, slot_id, self._clock.now() - start, pause_s=receipt.load_s)
                return Taken(receipt=receipt, expected=publication.snapshot.canary)
            await self._replace(publication)

    async def _deliver(self, links: Sequence[Link], slot_id: str, worker: WorkerHandle) -> Receipt:
        """All links in one call."""
        offers = tuple(link.offer for link in links)
        what = f"the replica on {slot_id}, taking version {offers[-1].version} of the weights"
        versions = [offer.version for offer in offers]
        self._num_taking.update(versions)
        try:
            call = worker.take_weights.remote(offers, *(piece for link in links for piece in link.cargo))
            receipt: Receipt = await answer(call, timeout_s=self._timeout_s, what=what)
        finally:
            self._num_taking.subtract(versions)
        return receipt

    @staticmethod
    def _prove(receipt: Receipt, offer: Offer, slot_id: str) -> None:
        if receipt.holding != offer.holding:
            raise WeightsRefusedError(
                f"the replica on {slot_id} reports version {receipt.version} with fingerprint "
                f"{receipt.fingerprint:016x}, published was version {offer.version} with {offer.fingerprint:016x}"
            )

    async def _replace(self, gone: _Publication) -> None:
        """Send a version again, whole, that is gone or cannot be built on; where the group has stepped on, wait for the
        next one, which is whole then.

        Raises:
            DeadlineExceededError: it does not come.
        """
        version = gone.offer.version
        async with self._replacing:
            if self._published is gone:
                logger.warning("version %d of the weights is sent again, whole", version)
                self._chain.end()
                again = await self._send(await self._snapshots.take_again(gone.snapshot))
                if again is not None:
                    self._offer(again)
        try:
            async with asyncio.timeout(self._timeout_s):
                while self._published is gone:
                    await self._has_published.wait()
        except TimeoutError:
            raise DeadlineExceededError(
                f"version {version} of the weights cannot be taken, the trainers have stepped, and no newer version "
                f"was published for weights.timeout_s={self._timeout_s:g} s"
            ) from None

    def _under_way(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something in the background, and count its time."""

        async def counted() -> None:
            with self._busy:
                await work

        task = self._run.tasks.create_task(counted())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _record(self, version: int, slot_id: str | None, duration_s: float, *, pause_s: float) -> None:
        self._run.events.emit(
            WeightEvent(
                time_s=self._clock.now(), version=version, slot_id=slot_id, duration_s=duration_s, pause_s=pause_s
            )
        )
