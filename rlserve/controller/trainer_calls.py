"""Calls to the workers that train: one of them, or several at once, each with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from rlserve.controller.ports import Fleet, WorkerHandle
from rlserve.errors import DeadlineExceededError, RlserveError, WorkerFailedError, WorkerLostError
from rlserve.remote import answer
from rlserve.trainers.base import Membership

_MENDABLE = (WorkerFailedError, DeadlineExceededError)
"""What a group can be formed anew after; any other error is the run's."""


class TrainerCalls:
    """Asks workers, and waits for their answers."""

    def __init__(self, fleet: Fleet, *, timeout_s: float) -> None:
        """``timeout_s`` is the deadline of calls that name none."""
        self._fleet = fleet
        self._timeout_s = timeout_s

    def workers(self, slot_ids: Sequence[str]) -> tuple[WorkerHandle | None, ...]:
        """The workers that are on some slots now; None in the place of one that was ended."""
        return tuple(self._fleet[slot_id] if slot_id in self._fleet.ready else None for slot_id in slot_ids)

    def ended(self, slot_ids: Sequence[str]) -> dict[str, RlserveError]:
        """Those of some slots whose worker was ended, with why: calls to them would fail at once."""
        found: dict[str, RlserveError] = {}
        for slot_id in slot_ids:
            try:
                self._fleet[slot_id]
            except WorkerLostError as error:
                found[slot_id] = error
        return found

    async def one(self, slot_id: str, method: str, *arguments: Any, timeout_s: float | None = None) -> Any:
        """The answer of one worker.

        Raises:
            RlserveError: its error.
        """
        call = getattr(self._fleet[slot_id], method).remote(*arguments)
        return await answer(call, timeout_s=timeout_s or self._timeout_s, what=f"trainer on {slot_id}, {method}")

    async def all(
        self, members: Sequence[str], method: str, *arguments: Any, timeout_s: float | None = None
    ) -> dict[str, Any]:
        """As :meth:`each`, with the same arguments for all."""
        return await self.each(dict.fromkeys(members, arguments), method, timeout_s=timeout_s)

    async def each(
        self,
        calls: Mapping[str, tuple[Any, ...]],
        method: str,
        *,
        timeout_s: float | None = None,
        on_lost: Callable[[], Awaitable[None]] | None = None,
    ) -> dict[str, Any]:
        """A call to each member, with the arguments given by member; as :func:`answers_of`."""
        asked = {
            member: self.one(member, method, *arguments, timeout_s=timeout_s) for member, arguments in calls.items()
        }
        return await answers_of(asked, on_lost=on_lost)

    async def break_off(self, places: Mapping[str, Membership]) -> None:
        """Let all members of a group that does not come about wait for each other no longer. Whoever cannot be told is
        lost, or waits until its own deadline."""
        await self.all(list(places), "break_off_group", max(place.generation for place in places.values()))


async def answers_of(
    asked: Mapping[str, Awaitable[Any]], *, on_lost: Callable[[], Awaitable[None]] | None = None
) -> dict[str, Any]:
    """Answers, or errors, of all members that were asked something. Ends when all have answered, or their deadline has
    passed; the call of a worker that is ended meanwhile, by the heartbeat or anybody, fails at once. ``on_lost`` is
    awaited once, when the first is lost while others have not answered.

    Raises:
        RlserveError: an error that no new group can mend.
    """
    tasks = {member: asyncio.ensure_future(each) for member, each in asked.items()}
    pending = set(tasks.values())
    try:
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            if on_lost and pending and any(isinstance(task.exception(), WorkerLostError) for task in done):
                await on_lost()
                on_lost = None
    finally:
        for task in pending:  # nobody waits any more
            task.cancel()
    answers = {member: task.exception() or task.result() for member, task in tasks.items()}
    for error in answers.values():
        if isinstance(error, BaseException) and not isinstance(error, _MENDABLE):
            raise error
    return answers


def failures_of(answers: Mapping[str, Any]) -> dict[str, RlserveError]:
    """Those members that have answered with an error."""
    return {member: found for member, found in answers.items() if isinstance(found, RlserveError)}


def lost_of(failures: Mapping[str, RlserveError]) -> dict[str, WorkerLostError]:
    """Those of them that are lost."""
    return {member: error for member, error in failures.items() if isinstance(error, WorkerLostError)}
