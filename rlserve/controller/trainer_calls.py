"""Calls to the workers that train: one of them, or several at once, each with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from rlserve.controller.ports import Fleet
from rlserve.errors import DeadlineExceededError, RlserveError, WorkerFailedError, WorkerLostError
from rlserve.remote import answer

_MENDABLE = (WorkerFailedError, DeadlineExceededError)
"""What a group can be formed anew after; any other error is the run's."""


class TrainerCalls:
    """Asks workers, and waits for their answers."""

    def __init__(self, fleet: Fleet, *, timeout_s: float) -> None:
        """``timeout_s`` is the deadline of calls that name none."""
        self._fleet = fleet
        self._timeout_s = timeout_s

    def workers(self, slot_ids: Sequence[str]) -> tuple[object, ...]:
        """The workers that are on some slots now; None in the place of one that was ended."""
        return tuple(self._fleet[slot_id] if slot_id in self._fleet.ready else None for slot_id in slot_ids)

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
        self, calls: Mapping[str, tuple[Any, ...]], method: str, *, timeout_s: float | None = None
    ) -> dict[str, Any]:
        """Answers, or errors, of all members. Ends when all have answered, or their deadline has passed; the call of
        a worker that is ended meanwhile, by the heartbeat or anybody, fails at once.

        Raises:
            RlserveError: an error that no new group can mend.
        """
        tasks = {
            member: asyncio.ensure_future(self.one(member, method, *arguments, timeout_s=timeout_s))
            for member, arguments in calls.items()
        }
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        answers = {member: task.exception() or task.result() for member, task in tasks.items()}
        for error in answers.values():
            if isinstance(error, BaseException) and not isinstance(error, _MENDABLE):
                raise error
        return answers


def failures_of(answers: Mapping[str, Any]) -> dict[str, RlserveError]:
    """Those members that have answered with an error."""
    return {member: found for member, found in answers.items() if isinstance(found, RlserveError)}


def lost_of(failures: Mapping[str, RlserveError]) -> dict[str, RlserveError]:
    """Those of them that are lost."""
    return {member: error for member, error in failures.items() if isinstance(error, WorkerLostError)}
