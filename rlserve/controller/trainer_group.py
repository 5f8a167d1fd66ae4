"""The workers that wear the train hat, as one data-parallel group that changes at step boundaries.

Every method runs between two steps: they all hold ``boundary``. Rank 0 always holds the current state; the
state is replicated, so any survivor can become rank 0.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError

from rlserve.errors import DeadlineExceededError, NonFiniteLossError, UserError, WorkerFailedError
from rlserve.pool.fleet import Fleet
from rlserve.trainers.base import Membership
from rlserve.trainers.batch import Batch

logger = logging.getLogger(__name__)

_PING_TIMEOUT_S = 20.0


class TrainerGroup:
    """Forms, resizes and steps the group."""

    def __init__(self, fleet: Fleet, *, switch_timeout_s: float, step_timeout_s: float) -> None:
        self._fleet = fleet
        self._switch_timeout_s = switch_timeout_s
        self._step_timeout_s = step_timeout_s
        self._members: tuple[str, ...] = ()
        self._generation = 0
        self._boundary = asyncio.Lock()

    @property
    def members(self) -> tuple[str, ...]:
        """Slots in order of rank."""
        return self._members

    @property
    def leader(self) -> Any:
        """The worker that is rank 0."""
        return self._fleet[self._members[0]]

    async def form(self, slot_ids: Sequence[str], restore_from: Path | None) -> None:
        """Form the first group of a run; rank 0 loads the model, or the checkpoint, and the others receive it."""
        async with self._boundary:
            first, others = slot_ids[0], tuple(slot_ids[1:])
            await self._regroup((first,), holds_state=True)
            if restore_from is not None:
                await self._call(first, "load_trainer", restore_from)
            if others:
                await self._regroup((first, *others))

    async def add(self, slot_id: str) -> None:
        """Let an idle worker join as the last rank."""
        async with self._boundary:
            await self._regroup((*self._members, slot_id))

    async def remove(self, slot_id: str) -> None:
        """Let a worker leave; its share of the work goes to the others."""
        async with self._boundary:
            remaining = tuple(member for member in self._members if member != slot_id)
            assert remaining, "the last trainer cannot leave"
            await self._regroup(remaining)
            await self._call(slot_id, "leave_training")

    async def step(self, batch: Batch) -> tuple[dict[str, float], tuple[str, ...]]:
        """Train on a batch with all members; returns the metrics and the members that were lost on the way.

        When a member dies, the survivors take the broken step back, re-form the group and do it again: the
        batch is trained on exactly once.

        Raises:
            NonFiniteLossError: nothing of the step was applied.
            WorkerFailedError: no member survived.
        """
        async with self._boundary:
            reference = ray.put(batch)
            lost: tuple[str, ...] = ()
            while True:
                answers: list[Any] = await asyncio.gather(
                    *(
                        self._call(member, "step", reference, timeout_s=self._step_timeout_s)
                        for member in self._members
                    ),
                    return_exceptions=True,
                )
                failed = [answer for answer in answers if isinstance(answer, BaseException)]
                if not failed:
                    metrics: dict[str, float] = answers[0]
                    return metrics, lost
                lost += await self._recover(dict(zip(self._members, answers, strict=True)))

    async def save(self, folder: Path) -> None:
        """Write the policy and the trainer's state into a folder that all nodes see."""
        async with self._boundary:
            await self._call(self._members[0], "save_trainer", folder, timeout_s=self._step_timeout_s)

    async def heal(self, without: str) -> tuple[str, ...]:
        """After a failed change of the group: re-form it of the members that answer, ``without`` left out.
        Returns the members that did not answer.

        Raises:
            WorkerFailedError: nobody who holds the state is left.
        """
        async with self._boundary:
            candidates = tuple(member for member in self._members if member != without)
            answers = await asyncio.gather(
                *(self._call(member, "info", timeout_s=_PING_TIMEOUT_S) for member in candidates),
                return_exceptions=True,
            )
            alive = tuple(
                member
                for member, answer in zip(candidates, answers, strict=True)
                if not isinstance(answer, BaseException)
            )
            if not alive:
                raise WorkerFailedError("no trainer is left that holds the state: continue with --resume")
            dead = tuple(member for member in candidates if member not in alive)
            for member in dead:
                self._fleet.kill(member)
            await self._regroup(alive)
            return dead

    async def _recover(self, answers: dict[str, Any]) -> tuple[str, ...]:
        for answer in answers.values():
            if isinstance(answer, (NonFiniteLossError, UserError)):
                raise answer
        dead = tuple(
            member for member, answer in answers.items() if isinstance(answer, (RayActorError, DeadlineExceededError))
        )
        survivors = tuple(member for member in self._members if member not in dead)
        if not dead or not survivors:
            cause = next(answer for answer in answers.values() if isinstance(answer, BaseException))
            if dead:
                raise WorkerFailedError(
                    f"the trainer on {', '.join(dead)} died and nobody else holds its state: continue with --resume"
                ) from cause
            raise cause
        logger.warning("trainer on %s died in mid-step; %s go on", ", ".join(dead), ", ".join(survivors))
        for member in dead:
            self._fleet.kill(member)
        await asyncio.gather(*(self._call(member, "rollback") for member in survivors))
        await self._regroup(survivors)
        return dead

    async def _regroup(self, members: tuple[str, ...], *, holds_state: bool = False) -> None:
        self._generation += 1
        host, port = await self._call(members[0], "choose_port")
        await asyncio.gather(
            *(
                self._call(
                    member,
                    "join_training",
                    Membership(rank=rank, world_size=len(members), host=host, port=port, generation=self._generation),
                    holds_state and rank == 0,
                )
                for rank, member in enumerate(members)
            )
        )
        self._members = members

    async def _call(self, slot_id: str, method: str, *arguments: Any, timeout_s: float | None = None) -> Any:
        deadline_s = timeout_s or self._switch_timeout_s
        try:
            return await asyncio.wait_for(getattr(self._fleet[slot_id], method).remote(*arguments), deadline_s)
        except TimeoutError:
            raise DeadlineExceededError(f"trainer on {slot_id}: {method} took longer than {deadline_s:g} s") from None
