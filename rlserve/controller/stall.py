"""When nothing moves: how long that may last, what moving is, and who owes what."""

from __future__ import annotations

import asyncio

from rlserve.config.tree import RunConfig
from rlserve.controller.context import Books, RunContext
from rlserve.controller.reallocation import Reallocation
from rlserve.controller.replicas import Replicas
from rlserve.controller.training_loop import TrainingLoop
from rlserve.errors import DeadlineExceededError
from rlserve.rollout.ledger import LIVE_STATES


def stall_timeout_s(config: RunConfig) -> float:
    """Longest that nothing at all moves while every wait keeps its own deadline."""
    rollout, pool = config.rollout, config.pool
    answers_s = rollout.request_timeout_s + config.reward.timeout_s
    if config.environment.name is not None:  # between two turns: a step, or the end of one and the reset of another
        answers_s += 2 * config.environment.timeout_s
    return answers_s + pool.worker_start_timeout_s + pool.switch_timeout_s


class StallGuard:
    """Ends a run in which somebody waits and nothing moves."""

    def __init__(
        self,
        run: RunContext,
        books: Books,
        training: TrainingLoop,
        replicas: Replicas,
        reallocation: Reallocation,
        *,
        timeout_s: float,
    ) -> None:
        self._run = run
        self._books = books
        self._training = training
        self._replicas = replicas
        self._reallocation = reallocation
        self._timeout_s = timeout_s

    async def watch(self) -> None:
        """Look every ``timeout_s``, until cancelled.

        Raises:
            DeadlineExceededError: somebody waits, and nothing moved since the last look.
        """
        before = self._progress()
        while True:
            await asyncio.sleep(self._timeout_s)
            before, last = self._progress(), before
            if before == last and self._run.changed.waiting:
                raise DeadlineExceededError(
                    f"waiting for {' and '.join(self._run.changed.waiting)}, and nothing moved for "
                    f"{self._timeout_s:g} s: {self._situation()}"
                )

    def _progress(self) -> object:
        """Something else whenever the run got on. What the training loop does besides waiting for a batch has deadlines
        of its own, and counts as getting on."""
        if not self._training.waiting:
            return object()
        changes = tuple(record.changed_s for record in self._books.ledger.live())
        num_changes, num_moves = self._run.changed.num_changes, len(self._reallocation.table.history)
        return changes, num_changes, self._replicas.num_generated_tokens, num_moves

    def _situation(self) -> str:
        """Who owes what."""
        ledger, table = self._books.ledger, self._reallocation.table
        groups = ", ".join(f"{ledger.count(state)} {state}" for state in LIVE_STATES)
        slots = ", ".join(f"{gang_id} {table.state(gang_id)}" for gang_id in table.gang_ids)
        return f"prompt groups: {groups}; slots: {slots}"
