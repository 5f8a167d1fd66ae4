"""Moves that a user asks for (``rlserve move``): taken from the run's folder, carried out in their turn, answered.

::

    requests in the folder ──► one after the other ──► reallocation: waits until no move is under way
                                                          ├──► obstacle (pure) ──► refused, with the reason
                                                          └──► moved, recorded as a decision, the split is held ──► done
"""

from __future__ import annotations

import asyncio
import logging

from rlserve.controller.context import RunContext
from rlserve.controller.gang_book import GangBook
from rlserve.controller.reallocation import Reallocation
from rlserve.manager.roles import Role
from rlserve.tracking.move_requests import GangStatus, MoveAnswer, MoveRequest, MoveRequests

logger = logging.getLogger(__name__)

_LOOK_S = 1.0


class HandMoves:
    """Answers the requests of users."""

    def __init__(
        self,
        run: RunContext,
        book: GangBook,
        reallocation: Reallocation,
        requests: MoveRequests,
        *,
        hold_s: float,
        refusal: str | None,
    ) -> None:
        """``hold_s`` is how long no policy changes a split that was made by hand; ``refusal`` says why in this run no
        gang can be moved."""
        self._run = run
        self._book = book
        self._reallocation = reallocation
        self._requests = requests
        self._hold_s = hold_s
        self._refusal = refusal

    def open(self) -> None:
        """Begin to take requests; they are answered by :meth:`run`."""
        self._requests.open()

    async def run(self) -> None:
        """Answer one request after the other, until cancelled."""
        while True:
            for request in await asyncio.to_thread(self._requests.take):
                answer = await self._answered(request)
                logger.info("by hand: %s %s: %s, %s", request.action, request.gang_id, answer.outcome, answer.message)
                await asyncio.to_thread(self._requests.answer, request, answer)
            await asyncio.sleep(_LOOK_S)

    async def _answered(self, request: MoveRequest) -> MoveAnswer:
        gang_id = None if request.gang_id is None else self._find(request.gang_id)
        if request.gang_id is not None and gang_id is None:
            known = ", ".join(gang.id for gang in self._book.present)
            return self._say("refused", f"there is no gang {request.gang_id!r}; the run has {known}")
        match request.action:
            case "show":
                return self._say("done", "")
            case "release":
                return self._say("done", self._release(gang_id))
            case "move" if self._refusal is not None:
                return self._say("refused", self._refusal)
            case "move":
                assert gang_id is not None, "requests are checked when they are read"
                assert request.role is not None, "requests are checked when they are read"
                is_done, message = await self._reallocation.move_by_hand(
                    self._book[gang_id], Role(request.role), hold_s=self._hold_s
                )
                return self._say("done" if is_done else "refused", message)

    def _find(self, name: str) -> str | None:
        """The gang of this name, or that of the slot."""
        for gang in self._book.present:
            if name == gang.id or name in gang.slot_ids:
                return gang.id
        return None

    def _release(self, gang_id: str | None) -> str:
        names = [each for each in self._book.held_until_s if gang_id in (None, each)]
        for each in names:
            del self._book.held_until_s[each]
        return f"the policy decides about {', '.join(names)} again" if names else "nothing was held"

    def _say(self, outcome: str, message: str) -> MoveAnswer:
        now = self._run.clock.now()
        held = {gang_id: until - now for gang_id, until in self._book.held_until_s.items() if until > now}
        gangs = tuple(
            GangStatus(
                id=gang.id,
                state=self._book.state(gang),
                num_slots=len(gang.slots),
                type=gang.slots[0].type.name,
                held_s=held.get(gang.id),
                leaving=self._book.leaving.get(gang.id),
            )
            for gang in self._book.present
        )
        return MoveAnswer(outcome="done" if outcome == "done" else "refused", message=message, gangs=gangs)
