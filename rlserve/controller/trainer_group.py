"""The workers that have the train role, as one data-parallel group that changes at step boundaries.

::

    form ──► step ──► publish ──► step …          add, remove, save: between two steps
               │         │
               └────┬────┘ a member is lost
                    ▼
      form the group of the survivors, who settle the broken step ──► do it again, unless one had completed it

Every method holds ``_boundary``, so nothing changes the group in mid-step. All members hold the weights, and each
shard of the optimizer's state is held by two, so any survivor can become rank 0 and no single loss loses anything.
Whoever is lost, in whatever the group does, is reported
once (``WorkerLost``), and the group goes on while one member is left.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlserve.controller.events import EventBus, WorkerLost
from rlserve.controller.ports import Fleet
from rlserve.controller.signal import Signal
from rlserve.errors import (
    DeadlineExceededError,
    RlserveError,
    StateLostError,
    WorkerFailedError,
    WorkerLostError,
)
from rlserve.manager.policies.base import Role
from rlserve.remote import answer
from rlserve.trainers.base import Membership
from rlserve.trainers.batch import Batch
from rlserve.weights.base import Transport

logger = logging.getLogger(__name__)

_MAX_FORMATIONS = 5
_MENDABLE = (WorkerFailedError, DeadlineExceededError)
"""What a group can be formed anew after; any other error is the run's."""


class TrainerGroup:
    """Forms, resizes and steps the group."""

    def __init__(
        self,
        fleet: Fleet,
        events: EventBus,
        *,
        switch_timeout_s: float,
        step_timeout_s: float,
        on_one_machine: bool,
    ) -> None:
        """``on_one_machine`` keeps the group's connections on the loopback interface."""
        self._fleet = fleet
        self._events = events
        self._switch_timeout_s = switch_timeout_s
        self._step_timeout_s = step_timeout_s
        self._on_one_machine = on_one_machine
        self._members: tuple[str, ...] = ()
        self._generation = 0
        self._num_completed = 0
        """Steps that the members have completed."""
        self._boundary = asyncio.Lock()
        self._has_stepped = True
        """Since the last version was published, so that the members hold newer weights."""
        self._published = Signal()

    @property
    def members(self) -> tuple[str, ...]:
        """Slots in order of rank."""
        return self._members

    async def form(self, slot_ids: Sequence[str], restore_from: Path | None) -> None:
        """Form the first group of a run; rank 0 loads the model, which the others receive, or each its part of the
        checkpoint.

        Raises:
            WorkerFailedError: a worker was lost: there is nothing to go on from yet.
        """
        async with self._boundary:
            first = (slot_ids[0],)
            for error in (await self._join(first, holds_state=True)).values():
                raise error
            self._members = first
            if len(slot_ids) > 1:
                await self._regroup(tuple(slot_ids))
            if restore_from is not None:
                answers = await self._call_all(self._members, "load_trainer", restore_from)
                for failure in _failures(answers).values():
                    raise failure
                self._num_completed = answers[self._members[0]]

    async def add(self, slot_id: str) -> None:
        """Let an idle worker join as the last rank.

        Raises:
            WorkerLostError: it was lost on the way, which was reported; the group goes on without it.
        """
        async with self._boundary:
            await self._regroup((*self._members, slot_id))
            if slot_id not in self._members:
                raise WorkerLostError(f"{slot_id} was lost while it joined the trainers")

    async def remove(self, slot_id: str, *, on_leaving: Callable[[], None]) -> bool:
        """Let a worker leave; its share of the work goes to the others.

        Returns False, and changes nothing, where at the step boundary the worker is the last member, or was lost.
        ``on_leaving`` is called at the boundary, when it is sure that the worker leaves.
        """
        async with self._boundary:
            remaining = tuple(member for member in self._members if member != slot_id)
            if not remaining or slot_id not in self._members:
                return False
            on_leaving()
            await self._regroup(remaining, leaving=(slot_id,))
            await self._call(slot_id, "leave_training")
            return True

    async def step(self, batch: Batch) -> dict[str, float]:
        """Train on a batch with all members; returns the metrics.

        When a member is lost, the survivors form the group anew, which takes the broken step back, and do it again;
        or, where one of them had completed it, completes it for all. So the batch is trained on exactly once.

        Raises:
            NonFiniteLossError: nothing of the step was applied.
            WorkerFailedError: no member survived, or the step fails without a loss.
        """
        async with self._boundary:
            metrics: dict[str, float]
            shared, before = self._fleet.share(batch), self._num_completed
            while True:
                answers = await self._call_all(self._members, "step", shared, timeout_s=self._step_timeout_s)
                failures = _failures(answers)
                if not failures:
                    metrics = answers[self._members[0]]
                    self._num_completed = before + 1
                    self._has_stepped = True
                    return metrics
                await self._regroup_survivors(failures)
                if self._num_completed > before:
                    self._has_stepped = True
                    metrics = await self._by_leader(lambda leader: self._call(leader, "last_metrics"))
                    return metrics

    async def publish(self, transport: Transport, version: int) -> None:
        """Let the transport take version ``version`` of the weights from rank 0."""
        async with self._boundary:
            await self._by_leader(lambda leader: transport.publish(self._fleet[leader], version))
            self._has_stepped = False
        self._published.notify()

    async def publish_again(self, transport: Transport, num_publications: int) -> None:
        """Replace what is gone of the newest version, the ``num_publications``-th that was published; returns when the
        transport has something to deliver again. Any member can give it, since all hold the same state. Where they have
        stepped meanwhile, the next version comes anyhow, and is waited for.

        Raises:
            DeadlineExceededError: it does not come.
            WorkerFailedError: no member is left.
        """
        async with self._boundary:
            if transport.num_publications == num_publications and not self._has_stepped:
                logger.warning("version %d of the weights is gone and is published again", transport.version)
                await self._by_leader(lambda leader: transport.publish(self._fleet[leader], transport.version))
        what = f"the version after {transport.version}"
        try:
            async with asyncio.timeout(self._switch_timeout_s):
                await self._published.wait_for(lambda: transport.num_publications > num_publications, what)
        except TimeoutError:
            raise DeadlineExceededError(
                f"waiting for {what}: the trainers have stepped and published nothing for {self._switch_timeout_s:g} s"
            ) from None

    async def save(self, folder: Path) -> None:
        """Write the policy and the trainer's state into a folder that all nodes see.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        async with self._boundary:
            while True:
                timeout_s = self._step_timeout_s
                failures = _failures(await self._call_all(self._members, "save_trainer", folder, timeout_s=timeout_s))
                if not failures:
                    return
                await self._regroup_survivors(failures)

    # -- inside: the caller holds the boundary ---------------------------------------------------------------

    async def _by_leader(self, action: Callable[[str], Awaitable[Any]]) -> Any:
        """Let rank 0 do something, and if it is lost, the next."""
        while True:
            leader = self._members[0]
            try:
                return await action(leader)
            except WorkerLostError as error:
                await self._regroup(self._members, lost={leader: error})

    async def _regroup_survivors(self, failures: Mapping[str, RlserveError]) -> None:
        """After something that all members do together has failed: go on without whoever is lost."""
        lost = _lost(failures)
        if not lost:
            raise next(iter(failures.values()))
        await self._regroup(self._members, lost=lost)

    async def _regroup(
        self,
        members: tuple[str, ...],
        *,
        lost: Mapping[str, RlserveError] | None = None,
        leaving: tuple[str, ...] = (),
    ) -> None:
        """Form the next group of those of ``members`` that are not lost, and report the lost.

        The old members stand first in ``members``, so rank 0 holds the weights. ``leaving`` are old members who take
        part once more where they alone hold something: two who leave together may, and one when another is lost.

        Raises:
            WorkerFailedError: nobody is left who holds the state, or some part of it.
        """
        holders, all_lost = set(self._members), dict(lost or {})
        failures: Mapping[str, RlserveError] = {}
        hand_over = len(leaving) > 1
        for _ in range(_MAX_FORMATIONS):
            members = tuple(member for member in members if member not in all_lost)
            if not members or members[0] not in holders:
                names, error = ", ".join(all_lost), list(all_lost.values())[-1]
                raise WorkerFailedError(
                    f"no trainer is left that holds the state ({names} lost: {error}): continue with --resume"
                )
            leaving = tuple(member for member in leaving if member not in all_lost)
            failures = _failures(await self._join(members, leaving=leaving if hand_over else ()))
            if not failures and not hand_over:
                break
            all_lost |= _lost(failures)
            state_lost = [error for error in failures.values() if isinstance(error, StateLostError)]
            if state_lost and (hand_over or not leaving):
                names = f" ({', '.join(all_lost)} lost)" if all_lost else ""
                raise StateLostError(f"{state_lost[0]}{names}: continue with --resume")
            hand_over = bool(failures and (hand_over or state_lost))
        else:
            raise next(iter(failures.values()))
        self._members = members
        for slot_id, error in all_lost.items():
            logger.warning("trainer on %s is lost, %s go on: %s", slot_id, ", ".join(members), error)
            self._events.emit(WorkerLost(slot_id=slot_id, role=Role.TRAIN, error=error))

    async def _join(
        self, staying: tuple[str, ...], *, leaving: tuple[str, ...] = (), holds_state: bool = False
    ) -> dict[str, RlserveError]:
        """Let workers join one group, in which those who are ``leaving`` only hand over; returns the failures. Ends
        when every one has answered, because one that still waits for a lost one could not join the next group."""
        members = (*staying, *leaving)
        self._generation += 1
        try:
            host, port = await self._call(members[0], "choose_port", self._on_one_machine)
        except WorkerLostError as error:
            return {members[0]: error}
        secret = secrets.token_hex(32)
        places = {
            member: Membership(
                rank=rank,
                num_ranks=len(members),
                host=host,
                port=port,
                generation=self._generation,
                secret=secret,
                num_leaving=len(leaving),
            )
            for rank, member in enumerate(members)
        }
        calls = {member: (place, holds_state and place.rank == 0) for member, place in places.items()}
        answers = await self._gather(calls, "join_training", self._switch_timeout_s)
        failures = _failures(answers)
        if not failures:
            self._num_completed = answers[members[0]]
        return failures

    async def _call_all(
        self, members: Sequence[str], method: str, *arguments: Any, timeout_s: float | None = None
    ) -> dict[str, Any]:
        return await self._gather(dict.fromkeys(members, arguments), method, timeout_s or self._switch_timeout_s)

    async def _gather(self, calls: Mapping[str, tuple[Any, ...]], method: str, timeout_s: float) -> dict[str, Any]:
        """Answers, or errors, of all members. Ends when all have answered, or their deadline has passed; the call of
        a worker that is ended meanwhile, by the heartbeat or anybody, fails at once.

        Raises:
            RlserveError: an error that no new group can mend.
        """
        tasks = {
            member: asyncio.ensure_future(self._call(member, method, *arguments, timeout_s=timeout_s))
            for member, arguments in calls.items()
        }
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        answers = {member: task.exception() or task.result() for member, task in tasks.items()}
        for error in answers.values():
            if isinstance(error, BaseException) and not isinstance(error, _MENDABLE):
                raise error
        return answers

    async def _call(self, slot_id: str, method: str, *arguments: Any, timeout_s: float | None = None) -> Any:
        call = getattr(self._fleet[slot_id], method).remote(*arguments)
        return await answer(call, timeout_s=timeout_s or self._switch_timeout_s, what=f"trainer on {slot_id}, {method}")


def _failures(answers: Mapping[str, Any]) -> dict[str, RlserveError]:
    return {member: found for member, found in answers.items() if isinstance(found, RlserveError)}


def _lost(failures: Mapping[str, RlserveError]) -> dict[str, RlserveError]:
    return {member: error for member, error in failures.items() if isinstance(error, WorkerLostError)}
