"""The workers that have the train role, as one data-parallel group that changes at step boundaries.

::

    form ──► step ──► step …          add, remove, copies of weights and state: between two steps
               │         │
               └────┬────┘ a member is lost
                    ▼
      form the group of the survivors, who settle the broken step ──► do it again, unless one had completed it

Every method holds the boundary between two steps, so nothing changes the group in mid-step. All members hold the
weights, and each shard of the optimizer's state is held by two gangs, so any survivor can become rank 0 and no single
loss loses anything. Slots of one gang have consecutive ranks, and join, leave and are lost together: where one of them
is lost, the next group has none of them. Only the last gang goes on with what is left of it. Each gang that lost a
member, in whatever the group does, is reported once (``WorkerLost``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rlserve.controller.boundary import StepBoundary
from rlserve.controller.context import RunContext
from rlserve.controller.events import WorkerLost
from rlserve.controller.group_copies import GroupCopies, GroupStep, MemberCopy, copies_made
from rlserve.controller.group_places import GroupPlaces
from rlserve.controller.ports import Fleet, WorkerHandle
from rlserve.controller.resizes import Resize
from rlserve.controller.trainer_calls import TrainerCalls, failures_of, lost_of
from rlserve.controller.trainer_gangs import TrainerGangs
from rlserve.errors import (
    RlserveError,
    StateLostError,
    WorkerFailedError,
    WorkerLostError,
    WriterLostError,
)
from rlserve.manager.roles import Role
from rlserve.pool.base import Copies, Joined
from rlserve.tracking.events import RolePhase, RolePhaseEvent
from rlserve.trainers.batch import Batch

logger = logging.getLogger(__name__)
T = TypeVar("T")

_MAX_FORMATIONS = 5
_NOTHING = GroupCopies()


class TrainerGroup:
    """Forms, resizes and steps the group."""

    def __init__(
        self,
        run: RunContext,
        fleet: Fleet,
        *,
        switch_timeout_s: float,
        step_timeout_s: float,
        on_one_machine: bool,
    ) -> None:
        """``on_one_machine`` keeps the group's connections on the loopback interface."""
        self._run = run
        self._fleet = fleet
        self._calls = TrainerCalls(fleet, timeout_s=switch_timeout_s)
        self._places = GroupPlaces(self._calls, on_one_machine=on_one_machine)
        self._step_timeout_s = step_timeout_s
        self._members: tuple[str, ...] = ()
        self._gangs = TrainerGangs()
        self._gang_size = 1
        """Members of each gang in the group; 1 where one is incomplete."""
        self._num_completed = 0
        self._resizes: list[Resize] = []
        self._boundary = StepBoundary(run.clock)
        self.num_tokens: int | None = None
        """Of the batch under way, or else of the last; None before the first."""
        self.step_begin_s: float | None = None
        """When the trainers began to compute on it; None between two steps."""

    @property
    def members(self) -> tuple[str, ...]:
        """Slots in order of rank."""
        return self._members

    @property
    def num_steps(self) -> int:
        """Steps that the members have completed: as long as it has not changed, all hold the same weights."""
        return self._num_completed

    @property
    def pause_s(self) -> float:
        """Seconds that training stood still because the group was changed, since the run began."""
        return self._boundary.pause_s

    def take_resizes(self) -> list[Resize]:
        """What the changes of the group took that were made since the last call."""
        resizes, self._resizes = self._resizes, []
        return resizes

    async def form(self, gangs: Sequence[Sequence[str]], restore_from: Path | None) -> None:
        """Form the first group of a run; rank 0 loads the model, which the others receive, or each its part of the
        checkpoint.

        Raises:
            WorkerFailedError: a worker was lost: there is nothing to go on from yet.
        """
        async with self._boundary.change():
            for gang in gangs:
                self._gangs.note(gang)
            slot_ids = tuple(slot_id for gang in gangs for slot_id in gang)
            first = slot_ids[:1]
            for error in (await self._join(first, loads_model=True)).values():
                raise error
            self._members = first
            if len(slot_ids) > 1:
                await self._regroup(slot_ids)
            if restore_from is not None:
                answers = await self._calls.all(self._members, "load_trainer", restore_from)
                for failure in failures_of(answers).values():
                    raise failure
                self._num_completed = answers[self._members[0]]

    async def prepare(self, slot_ids: Sequence[str]) -> None:
        """Let the idle workers of a gang build what they need to join, and meet the others, while these train.

        Raises:
            WorkerFailedError: one of them was lost, or failed.
        """
        for error in failures_of(await self._calls.all(slot_ids, "prepare_training")).values():
            raise error
        self._note_phase(slot_ids, "trainer_built")
        await self._places.meet(self._with(slot_ids))
        self._note_phase(slot_ids, "group_met")

    async def add(self, slot_ids: Sequence[str]) -> None:
        """Let the idle workers of a gang join as the last ranks, all at once; of the last gang, those that it lost.

        Raises:
            WorkerLostError: one was lost on the way, which was reported; the group goes on without the gang.
        """
        async with self._boundary.change():
            await self._add(slot_ids)

    async def add_when(
        self, ready: asyncio.Future[None], slot_ids: Sequence[str], *, patience_s: Callable[[], float]
    ) -> None:
        """As :meth:`add`, once the gang is ``ready`` to join. At the end of the step under way training waits for that,
        but no longer than ``patience_s``, which is asked then; it goes on without the gang, which joins after a later
        step.

        Raises:
            WorkerFailedError: as from :meth:`add`, or what ``ready`` failed with.
        """
        while True:
            async with self._boundary.change():
                with contextlib.suppress(TimeoutError):
                    async with self._run.clock.timeout(patience_s()):
                        await asyncio.shield(ready)
                if ready.done():
                    ready.result()
                    await self._add(slot_ids)
                    return
            await asyncio.wait([ready])

    async def remove(self, slot_ids: Sequence[str], *, on_leaving: Callable[[], None]) -> bool:
        """Let the workers of a gang leave, all at once; their share of the work goes to the others.

        Returns False where at the step boundary the gang is the last one, or was lost, which changes nothing; or where
        all others turn out to be lost, so that it stays. ``on_leaving`` is called at the boundary, when it is to leave.

        Raises:
            WorkerFailedError: one of them was lost after the others had gone on without the gang.
        """
        meeting = asyncio.ensure_future(self._places.meet(self._except(slot_ids)))  # while the step goes on
        try:
            async with self._boundary.change():
                remaining = self._except(slot_ids)
                leaving = tuple(member for member in self._members if member in slot_ids)
                if not remaining or not leaving:
                    return False
                on_leaving()
                self._note_phase(leaving, "step_boundary")
                await meeting
                await self._regroup(remaining, leaving=leaving)
                if set(leaving) & set(self._members):
                    return False
        finally:
            meeting.cancel()
            await asyncio.wait([meeting])
        # The others train on while its memory is freed.
        for error in failures_of(await self._calls.all(leaving, "leave_training")).values():
            raise error
        return True

    async def step(self, batch: Batch, copies: GroupCopies = _NOTHING) -> GroupStep:
        """Train on a batch with all members, who then copy what they have made.

        When a member is lost, the survivors form the group anew, which takes the broken step back, and do it again;
        or, where one of them had completed it, completes it for all. So the batch is trained on exactly once.

        Raises:
            NonFiniteLossError: nothing of the step was applied.
            WorkerFailedError: no member survived, or the step fails without a loss.
        """
        async with self._boundary.training():
            start, broken_s, shared, before = self._run.clock.now(), 0.0, self._fleet.share(batch), self._num_completed
            while True:
                asked = copies.of_each(self._members)
                workers = self._calls.workers(self._members)
                answers = await self._compute(batch, {member: (shared, each) for member, each in asked.items()})
                failures = failures_of(answers)
                if not failures:
                    metrics = answers[self._members[0]].metrics
                    made = copies_made(asked, workers, {member: each.copied for member, each in answers.items()})
                    self._num_completed = before + 1
                    break
                await self._regroup_survivors(failures)
                if self._num_completed > before:
                    metrics = await self._by_leader(lambda leader: self._calls.one(leader, "last_metrics"))
                    made = await self._copy(copies)
                    break
                broken_s = self._run.clock.now() - start
            return GroupStep(metrics=metrics, copies=made, duration_s=self._run.clock.now() - start, broken_s=broken_s)

    async def copy(self, copies: GroupCopies, *, at_step: int | None = None) -> tuple[MemberCopy, ...]:
        """Let members copy between two steps; if one is lost, those who are left do it anew. Nothing is copied where
        the group is not ``at_step`` any more (``num_steps``).

        Raises:
            WorkerFailedError: no member is left.
        """
        async with self._boundary.training():
            return await self._copy(copies) if at_step in (None, self._num_completed) else ()

    async def by_leader(self, action: Callable[[str], Awaitable[T]]) -> T:
        """Let rank 0 do something between two steps, and if it is lost, the next; returns what ``action`` does.

        Raises:
            WorkerFailedError: no member is left.
        """
        async with self._boundary.training():
            return await self._by_leader(action)

    async def expel(self, slot_id: str, worker: WorkerHandle, error: WorkerLostError) -> None:
        """Between two steps, form the group anew without a member whose ``worker`` was found lost, and report it; do
        nothing where it is a member no more, or again with another worker."""
        async with self._boundary.change():
            is_replaced = slot_id in self._fleet.ready and self._fleet[slot_id] is not worker
            if slot_id in self._members and not is_replaced:
                await self._regroup(self._members, lost={slot_id: error})

    async def write_state(self, slot_ids: Sequence[str], folder: Path) -> None:
        """Let those who have copied their state write it into a folder that all nodes see, while training goes on;
        whether they are still members does not matter.

        Raises:
            CheckpointError: the folder cannot be written.
            WriterLostError: one of them was lost, or did not answer in time.
        """
        answers = await self._calls.all(slot_ids, "write_state", folder, timeout_s=self._step_timeout_s)
        for error in failures_of(answers).values():
            raise WriterLostError(f"checkpoint {folder} is given up: {error}") from error

    # -- inside: the caller holds the boundary ---------------------------------------------------------------

    async def _compute(self, batch: Batch, calls: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
        self.num_tokens, self.step_begin_s = len(batch.token_ids), self._run.clock.now()
        self._run.changed.notify()
        try:
            return await self._calls.each(calls, "step", timeout_s=self._step_timeout_s)
        finally:
            self.step_begin_s = None
            self._run.changed.notify()

    async def _copy(self, copies: GroupCopies) -> tuple[MemberCopy, ...]:
        while True:
            asked = {member: each for member, each in copies.of_each(self._members).items() if each != Copies()}
            workers = self._calls.workers(tuple(asked))
            calls = {member: (each,) for member, each in asked.items()}
            answers = await self._calls.each(calls, "copy_between_steps", timeout_s=self._step_timeout_s)
            failures = failures_of(answers)
            if not failures:
                return copies_made(asked, workers, answers)
            await self._regroup_survivors(failures)

    async def _add(self, slot_ids: Sequence[str]) -> None:
        self._gangs.note(slot_ids)
        self._note_phase(slot_ids, "step_boundary")
        await self._regroup(self._with(slot_ids))
        if not set(slot_ids) <= set(self._members):
            raise WorkerLostError(f"{', '.join(slot_ids)}: lost while joining the trainers")

    def _with(self, slot_ids: Sequence[str]) -> tuple[str, ...]:
        return (*self._members, *(each for each in slot_ids if each not in self._members))

    def _except(self, slot_ids: Sequence[str]) -> tuple[str, ...]:
        return tuple(member for member in self._members if member not in slot_ids)

    def _note_phase(self, slot_ids: Sequence[str], phase: RolePhase) -> None:
        self._run.events.emit(RolePhaseEvent(time_s=self._run.clock.now(), slot_id=slot_ids[0], phase=phase))

    async def _by_leader(self, action: Callable[[str], Awaitable[T]]) -> T:
        while True:
            leader = self._members[0]
            try:
                return await action(leader)
            except WorkerLostError as error:
                await self._regroup(self._members, lost={leader: error})

    async def _regroup_survivors(self, failures: Mapping[str, RlserveError]) -> None:
        """After something that all members do together has failed: go on without whoever is lost."""
        lost = lost_of(failures)
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
        """Form the next group of those gangs of ``members`` that are not lost, and report the lost.

        The old members stand first in ``members``, so rank 0 holds the weights. ``leaving`` are old members who take
        part once more where they alone hold something: more than a gang may, and a gang when another is lost. They
        stay where nobody else is left.

        Raises:
            WorkerFailedError: nobody is left who holds the state, or some part of it.
        """
        holders, all_lost = set(self._members), dict(lost or {})
        newcomers = frozenset(members) - holders
        failures: Mapping[str, RlserveError] = {}
        hand_over = len(leaving) > self._gang_size
        for _ in range(_MAX_FORMATIONS):
            members = self._gangs.without(members, all_lost, holders=self._members)
            leaving = tuple(member for member in leaving if member not in all_lost)
            if not members:
                members, leaving, hand_over = leaving, (), False
            if not members or members[0] not in holders:
                names, error = ", ".join(all_lost), list(all_lost.values())[-1]
                raise WorkerFailedError(
                    f"no trainer is left that holds the state ({names} lost: {error}): continue with --resume"
                )
            failures = await self._join(members, leaving=leaving if hand_over else (), newcomers=newcomers)
            newcomers = frozenset()  # from now on they may hold what nobody else does
            if not failures and not hand_over:
                break
            all_lost |= lost_of(failures)
            state_lost = [error for error in failures.values() if isinstance(error, StateLostError)]
            if state_lost and (hand_over or not leaving):
                names = f" ({', '.join(all_lost)} lost)" if all_lost else ""
                raise StateLostError(f"{state_lost[0]}{names}: continue with --resume")
            hand_over = bool(failures and (hand_over or state_lost))
        else:
            raise next(iter(failures.values()))
        self._members, self._gang_size = members, self._gangs.common_size(members)
        for slot_id, error in self._gangs.one_of_each(all_lost):
            logger.warning("trainer on %s is lost, %s go on: %s", slot_id, ", ".join(members), error)
            self._run.events.emit(WorkerLost(slot_id=slot_id, role=Role.TRAIN, error=error))

    async def _join(
        self,
        staying: tuple[str, ...],
        *,
        leaving: tuple[str, ...] = (),
        newcomers: Collection[str] = (),
        loads_model: bool = False,
    ) -> dict[str, RlserveError]:
        """Let workers join one group; returns the failures. Ends when every one has answered, because one that still
        waits for a lost one could not join the next group.

        Args:
            leaving: those who only hand over.
            newcomers: those whose state, from a spell of training before, is worth nothing.
            loads_model: the only one, who loads the model.
        """
        first, start_s = staying[0], self._run.clock.now()
        if ended := self._calls.ended((*staying, *leaving)):  # the others would wait for them
            return ended
        try:
            places = await self._places.take(staying, leaving, gang_size=self._gangs.common_size(staying))
        except WorkerLostError as error:
            return {first: error}
        calls = {member: (place, loads_model, member in newcomers) for member, place in places.items()}
        answers = await self._calls.each(calls, "join_training", on_lost=lambda: self._calls.break_off(places))
        failures = failures_of(answers)
        if not failures:
            joined: Joined = answers[first]
            self._num_completed = joined.num_steps
            self._resizes.append(Resize(duration_s=self._run.clock.now() - start_s, traffic=joined.traffic))
        return failures
