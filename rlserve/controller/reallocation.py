"""Moving gangs between training and rollout: observe, decide, act.

::

    every manager.interval_s:   observe ──► policy.decide (pure) ──► record ──► act, one legal move at a time

A slot has exactly one owner at every moment (``rlserve.manager.gang_table``). There is one move, or one joining of a
new worker, at a time. A gang that is to train generates until the trainers are about to end their step
(``rlserve.controller.calls``). The steps of a move are in ``rlserve.controller.role_changes``; a worker that fails in
the middle of one is replaced by ``rlserve.controller.recovery``, and its gang takes up the role that it was going to
have.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from rlserve.controller.calls import Calls
from rlserve.controller.context import RunContext
from rlserve.controller.decision_log import DecisionLog
from rlserve.controller.gang_book import ROLES, GangBook
from rlserve.controller.measuring import Measuring
from rlserve.controller.observer import Observer
from rlserve.controller.recovery import Recovery
from rlserve.manager.config import StaticConfig
from rlserve.manager.gang_table import GangState, GangTable
from rlserve.manager.hand_moves import find_obstacle
from rlserve.manager.policies.base import Move, Observation, Plan, Policy
from rlserve.manager.policies.static import StaticPolicy
from rlserve.manager.roles import Role
from rlserve.pool.gangs import Gang

logger = logging.getLogger(__name__)

_HELD = StaticPolicy(StaticConfig())
"""Decides while the split is held by hand."""


class Reallocation:
    """Carries out the policy's plans."""

    def __init__(
        self,
        run: RunContext,
        book: GangBook,
        recovery: Recovery,
        *,
        calls: Calls,
        policy: Policy[Any],
        observer: Observer,
        measuring: Measuring,
        interval_s: float,
    ) -> None:
        self._run = run
        self._book = book
        self._recovery = recovery
        self._calls = calls
        self._policy = policy
        self._policy_state = policy.initial_state()
        self._observer = observer
        self._measuring = measuring
        self._log = DecisionLog(run, book.table)
        self._interval_s = interval_s
        self._last_move_end_s: float | None = None
        self._settled = False
        self._num_hand_moves = 0
        self.move_s = self.trainer_pause_s = 0.0
        """Of the last move: from the end of the old role to the new one, and how long training stood still for it."""

    @property
    def table(self) -> GangTable:
        """What each gang is doing."""
        return self._book.table

    @property
    def roles(self) -> dict[str, Role]:
        """Of each gang that has one, by gang id."""
        return self._book.roles

    async def run(self) -> None:
        """Decide and act until cancelled."""
        while not self._settled:
            await self._run.clock.sleep(self._interval_s)
            self.table.check_integrity()
            observation = self.observe()
            plan, num_hand_moves = self._decide(observation), self._num_hand_moves
            self._record(observation, plan)
            for move in plan.moves:
                await self._call_and_move(self._book[move.gang_id], move.to, plan, num_hand_moves)

    def _decide(self, observation: Observation) -> Plan:
        """The policy's plan; while the split is held by hand, only what must be moved is moved."""
        held_s = self._book.held_for_s()
        if not held_s:
            plan, self._policy_state = self._policy.decide(observation, self._policy_state)
            return plan
        plan, _ = _HELD.decide(observation, None)
        return plan if plan.moves else replace(plan, reason=f"moved by hand, and held for another {held_s:.0f} s")

    async def move_by_hand(self, gang: Gang, role: Role, *, hold_s: float) -> tuple[bool, str]:
        """Bring a gang into a role because a user wants it, as soon as no move is under way, and hold the split.

        Returns whether the gang has the role, and what was done or why nothing was.
        """
        plan = Plan(moves=(Move(gang_id=gang.id, to=role),), reason="by hand")
        begun_s: float | None = None
        while True:
            async with self._recovery.moving:
                observation = self._observe(moving=False)
                obstacle = self._hand_move_obstacle(gang, role, observation)
                if obstacle is not None:
                    return False, obstacle
                self._calls.call_off("a user moves gangs")
                self._num_hand_moves += 1
                self._book.held_until_s[gang.id] = self._run.clock.now() + hold_s
                if ROLES.get(self._book.state(gang)) is role:
                    return True, f"{gang.id} has the {role} role already"
                if begun_s is None:
                    begun_s = self._run.clock.now()
                    self._record(observation, plan)
            if await self._call_and_move(gang, role, plan, self._num_hand_moves):
                break  # else something else came between, and it may be another gang's turn now
        state = self._book.state(gang)
        if ROLES.get(state) is not role:
            return False, f"the move failed, see the log: {gang.id} is {state.replace('_', ' ')}"
        return True, f"{gang.id} has the {role} role after {self._run.clock.now() - begun_s:.2f} s"

    def observe(self) -> Observation:
        """Read everything that the policy looks at, once."""
        is_joining = bool(self.table.in_state(GangState.JOINING_ROLLOUT))
        return self._observe(moving=self._recovery.moving.locked() or self._calls.pending or is_joining)

    def _observe(self, *, moving: bool) -> Observation:
        return self._observer.observe(moving=moving, last_move_end_s=self._last_move_end_s)

    async def begin(self, gang: Gang, role: Role) -> None:
        """First role of a gang whose workers have come up; trainers of the first group have joined already."""
        self._recovery.come_up(gang, gang.slot_ids)
        if role is Role.TRAIN:
            self._book.move(gang, GangState.JOINING_TRAIN, "initial split")
            self._book.move(gang, GangState.TRAIN, "initial split")
        else:
            await self._recovery.guard(gang, role, self._recovery.roles.take(gang, role, "initial split"))

    async def settle(self) -> None:
        """Wait until no move is under way, and let none begin. Lost workers are still replaced."""
        self._settled = True
        self._calls.call_off("the run is about to end")
        async with self._recovery.moving:
            pass

    def _hand_move_obstacle(self, gang: Gang, role: Role, observation: Observation) -> str | None:
        if self._settled:
            return "the run is about to end, and nothing moves any more"
        if gang.id in self._book.repairing:
            return f"a worker of {gang.id} is being replaced: ask again in a while"
        return find_obstacle(gang.id, role, observation.gangs, observation.legal_trainer_sizes)

    async def _call_and_move(self, gang: Gang, role: Role, plan: Plan, num_hand_moves: int) -> bool:
        """Carry one move out; False where it was called off while the gang was still at its work. ``num_hand_moves``
        is how many there were when it was decided: after more of them the split is not the one decided on."""
        is_called = self._may_move(gang, role) and self._book.state(gang) is GangState.ROLLOUT
        if is_called and not await self._calls.ready(gang, plan.reason):
            return False
        async with self._recovery.moving:
            if self._num_hand_moves != num_hand_moves or (is_called and not self._calls.answered(gang)):
                return False
            await self._move(gang, role, plan)
        return True

    async def _move(self, gang: Gang, role: Role, plan: Plan) -> None:
        """Carry one move out; the caller holds the lock of moves."""
        if not self._may_move(gang, role):
            return  # the run is about to end, or the gang was lost since the decision
        roles, begin_s = self._recovery.roles, self._run.clock.now()
        pause_before_s = roles.trainer_pause_s
        is_new = self._book.state(gang) is GangState.IDLE
        change = roles.take(gang, role, plan.reason) if is_new else self._change_role(gang, role, plan.reason)
        await self._recovery.guard(gang, role, change)
        self.trainer_pause_s = pause_s = roles.trainer_pause_s - pause_before_s
        if not is_new and ROLES.get(self._book.state(gang)) is role:
            begin_s = self.table.entered_s(gang.id, GangState.LEAVING_ROLLOUT, GangState.LEAVING_TRAIN)
            if role is Role.TRAIN:
                self._measuring.note_left(gang, begin_s=begin_s, end_s=self.table.entered_s(gang.id, GangState.IDLE))
            self._measuring.note_move(gang, role, begin_s=begin_s, trainer_pause_s=pause_s)
        self.move_s = self._run.clock.now() - begin_s
        logger.info("%s is %s after %.2f s", gang.id, self._book.state(gang), self.move_s)
        self._last_move_end_s = self._run.clock.now()

    def _may_move(self, gang: Gang, role: Role) -> bool:
        state = self._book.state(gang)
        if self._settled or gang.id in self._book.leaving or gang.id in self._book.repairing:
            return False
        return state is GangState.IDLE or ROLES.get(state) not in (None, role)

    async def _change_role(self, gang: Gang, role: Role, reason: str) -> None:
        roles = self._recovery.roles
        if role is Role.TRAIN:
            await roles.go_to_training(gang, reason, patience_s=self._calls.patience_s)
            self._run.counters.moves_to_train += 1
        elif await roles.give_up(gang, reason):
            await roles.take(gang, role, reason)
            self._run.counters.moves_to_rollout += 1
        else:
            logger.info("%s stays a trainer: trainers were lost, and it is the last", gang.id)

    def _record(self, observation: Observation, plan: Plan) -> None:
        self._log.note(observation, plan)
        for move in plan.moves[:1]:
            logger.info("manager: %s to %s (%s)", move.gang_id, move.to, plan.reason)
