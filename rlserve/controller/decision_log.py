"""Which decisions are written down: every move, and a hold when there is something new to say.

A policy decides many times a minute, and nearly always to leave everything as it is. Such a hold is written

- at once when its grounds are new: its reason without the numbers in it, and how many slots have which role; but not
  again within :data:`FIGURES_S` where it goes back and forth,
- after :data:`FIGURES_S` when what it predicts, or the queue, has changed by more than :data:`MATERIAL`,
- after :data:`LONGEST_S` in any case.
"""

from __future__ import annotations

import re
from dataclasses import asdict

from rlserve.controller.context import RunContext
from rlserve.manager.gang_table import SERVING, GangState, GangTable
from rlserve.manager.policies.base import Observation, Plan
from rlserve.manager.roles import Role
from rlserve.tracking.events import Decision

FIGURES_S = 10.0
LONGEST_S = 60.0
MATERIAL = 0.1
"""Share by which a figure has to change."""
_NUMBER = re.compile(r"\d+(\.\d+)?(e[+-]?\d+)?")


class DecisionLog:
    """Emits the decisions that are worth a line."""

    def __init__(self, run: RunContext, table: GangTable) -> None:
        self._run = run
        self._table = table
        self._last: Decision | None = None
        self._written_s: dict[tuple[object, ...], float] = {}
        """When something was last written on these grounds, since the last move."""

    def note(self, observation: Observation, plan: Plan) -> None:
        """The policy has decided."""
        move = plan.moves[0] if plan.moves else None
        decision = Decision(
            time_s=observation.time_s,
            step=self._run.counters.num_steps,
            action="hold" if move is None else "to_rollout" if move.to is Role.ROLLOUT else "to_train",
            slot_id=None if move is None else move.gang_id,
            queue_length=observation.queue_length,
            num_train=self._table.count(GangState.TRAIN),
            num_rollout=self._table.count(*SERVING),
            reason=plan.reason,
            **({} if plan.forecast is None else asdict(plan.forecast)),
            numbers=plan.numbers,
        )
        if self._is_news(decision):
            self._last = decision
            if move is not None:
                self._written_s.clear()
            self._written_s[_grounds(decision)] = decision.time_s
            self._run.events.emit(decision)

    def _is_news(self, decision: Decision) -> bool:
        last = self._last
        if last is None or decision.action != "hold" or decision.time_s - last.time_s >= LONGEST_S:
            return True
        if decision.time_s - self._written_s.get(_grounds(decision), float("-inf")) < FIGURES_S:
            return False
        return _grounds(decision) != _grounds(last) or any(map(_differ, _figures(decision), _figures(last)))


def _grounds(decision: Decision) -> tuple[object, ...]:
    return decision.action, _NUMBER.sub("#", decision.reason), decision.num_train, decision.num_rollout


def _figures(decision: Decision) -> tuple[float | None, ...]:
    return decision.rate_now, decision.rate_after, decision.gain, decision.queue_length


def _differ(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is not other
    return abs(one - other) > MATERIAL * max(abs(one), abs(other))
