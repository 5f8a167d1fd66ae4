"""Observe, decide, act: the real policy and the real measurement, and moves in phases that cost what the scenario says.

::

    rollout → train   the step is about to end ─ serves no more ─ sleep ─ the trainers re-form with it (training pauses)
    train → rollout   the step has ended ─ the trainers re-form without it ─ sleep ─ wake ─ weights ─ serves
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rlserve.manager.gang_table import SERVING, GangState, GangTable
from rlserve.manager.leaving import leave_at_s, patience_s
from rlserve.manager.measurement.figures import Measurements
from rlserve.manager.measurement.readings import MoveDone, RolloutLeft
from rlserve.manager.policies.base import GangView, Observation, Policy
from rlserve.manager.roles import Role
from rlserve.simulate.clock import Clock, Process
from rlserve.simulate.generation import Generation
from rlserve.simulate.journal import Journal
from rlserve.simulate.scenario import Scenario
from rlserve.simulate.training import Training
from rlserve.simulate.weights import Weights

_ROLES = {GangState.TRAIN: Role.TRAIN, **dict.fromkeys(SERVING, Role.ROLLOUT)}


class Reallocation:
    """Owns the gangs' states, and carries out the policy's plans, one move at a time."""

    def __init__(
        self,
        clock: Clock,
        scenario: Scenario,
        journal: Journal,
        *,
        generation: Generation,
        training: Training,
        weights: Weights,
        policy: Policy[Any],
    ) -> None:
        self.table = GangTable()
        self.gangs: Mapping[str, GangView] = {gang.id: gang for gang in scenario.gangs}
        self._clock = clock
        self._scenario = scenario
        self._journal = journal
        self._generation = generation
        self._training = training
        self._weights = weights
        self._policy = policy
        self._policy_state = policy.initial_state()
        self._moving = False
        self._last_move_end_s: float | None = None
        self._views: tuple[GangView, ...] = ()
        self._num_seen = 0
        """Changes of the table that the views show."""

    def begin(self, roles: Mapping[str, Role]) -> None:
        """Give every gang its first role."""
        for gang_id in self.gangs:
            self.table.add(gang_id, time_s=0.0)
            self._move(gang_id, GangState.IDLE, "is up")
        for gang_id, role in roles.items():
            if role is Role.TRAIN:
                self._move(gang_id, GangState.JOINING_TRAIN, "initial split")
                self._training.members[gang_id] = self.gangs[gang_id].type
                self._move(gang_id, GangState.TRAIN, "initial split")
            else:
                self._move(gang_id, GangState.JOINING_ROLLOUT, "initial split")
                self._generation.join(gang_id, self.gangs[gang_id].type, self._weights.version)
                self._move(gang_id, GangState.ROLLOUT, "initial split")

    def run(self, interval_s: float) -> Process:
        """Decide and act, until the end of time."""
        while True:
            yield interval_s
            plan, self._policy_state = self._policy.decide(self.observe(), self._policy_state)
            for move in plan.moves:
                yield from self._change_role(move.gang_id, move.to, plan.reason)

    def observe(self) -> Observation:
        """What the policy looks at."""
        generation = self._generation
        num_buffered = len(generation.buffer)
        return Observation(
            time_s=self._clock.now_s,
            queue_length=generation.dispatcher.num_waiting,
            num_buffered=num_buffered,
            num_in_flight=generation.ledger.num_live - num_buffered,
            trainer_waiting=self._training.waiting,
            admission=self._scenario.admission,
            measured=self._measured(),
            gangs=self._gang_views(),
            legal_trainer_sizes=tuple(range(1, len(self._gang_views()))),
            moving=self._moving,
            last_move_end_s=self._last_move_end_s,
        )

    def _measured(self) -> Measurements:
        if self._journal.meter is not None:
            self._generation.poll()
        return self._journal.measured(self._clock.now_s)

    def _gang_views(self) -> tuple[GangView, ...]:
        num_changes = self.table.num_changes
        if num_changes != self._num_seen:
            self._num_seen = num_changes
            self._views = tuple(
                replace(
                    self.gangs[gang_id],
                    role=_ROLES.get(state),
                    idle=state is GangState.IDLE and not self._moving,
                    alive=state is not GangState.DEAD,
                )
                for gang_id in self.table.gang_ids
                if (state := self.table.state(gang_id)) is not GangState.GONE
            )
        return self._views

    def _change_role(self, gang_id: str, to: Role, reason: str) -> Process:
        self._moving = True
        pauses: list[float] = []
        if to is Role.ROLLOUT:
            yield self._training.at_boundary(lambda: self._leave_training(gang_id, reason, pauses))
            yield self._scenario.costs.sleep_s(self.gangs[gang_id].type)
            self._move(gang_id, GangState.IDLE, reason)
            yield from self._take_rollout(gang_id, reason)
        else:
            yield from self._wait_to_leave(gang_id, reason)
            yield from self._go_to_training(gang_id, reason, pauses)
        begin_s = self.table.entered_s(gang_id, GangState.LEAVING_ROLLOUT, GangState.LEAVING_TRAIN)
        self._moving = False
        now_s = self._last_move_end_s = self._clock.now_s
        self._journal.moves.append((begin_s, now_s, gang_id, to))
        self._journal.note(MoveDone(begin_s=begin_s, end_s=now_s, gang_id=gang_id, to=to, trainer_pause_s=sum(pauses)))

    def _wait_to_leave(self, gang_id: str, reason: str) -> Process:
        self._move(gang_id, GangState.CALLED_TO_TRAIN, reason)
        while True:
            leave_s = leave_at_s(self._training.now, self._measured())
            if leave_s is None:
                yield self._training.next_stage
            elif leave_s > self._clock.now_s:
                yield self._clock.within(leave_s - self._clock.now_s, self._training.next_stage)
            else:
                return

    def _go_to_training(self, gang_id: str, reason: str, pauses: list[float]) -> Process:
        """Leave rollout, and join at the end of the step, which should come just then."""
        self._move(gang_id, GangState.LEAVING_ROLLOUT, reason)
        self._generation.leave(gang_id)
        sleep_s = self._scenario.costs.sleep_s(self.gangs[gang_id].type)
        ready_s = self._clock.now_s + sleep_s
        joined = self._training.at_boundary(lambda: self._join_training(gang_id, ready_s, pauses))
        yield sleep_s
        self._journal.note(RolloutLeft(end_s=ready_s, gang_id=gang_id, duration_s=sleep_s))
        self._move(gang_id, GangState.IDLE, reason)
        self._move(gang_id, GangState.JOINING_TRAIN, reason)
        self._training.go_on()
        yield joined
        self._move(gang_id, GangState.TRAIN, reason)

    def _take_rollout(self, gang_id: str, reason: str) -> Process:
        costs, type_name = self._scenario.costs, self.gangs[gang_id].type
        self._move(gang_id, GangState.JOINING_ROLLOUT, reason)
        yield costs.wake_s(type_name)
        version = self._weights.version
        yield costs.weights_s(type_name)
        self._generation.join(gang_id, type_name, version)
        self._move(gang_id, GangState.ROLLOUT, reason)
        self._weights.bring_up(self._generation.replicas[gang_id])

    def _leave_training(self, gang_id: str, reason: str, pauses: list[float]) -> float:
        self._move(gang_id, GangState.LEAVING_TRAIN, reason)
        num_before = len(self._training.members)
        del self._training.members[gang_id]
        pauses.append(self._reshard_s(num_before))
        return pauses[-1]

    def _join_training(self, gang_id: str, ready_s: float, pauses: list[float]) -> float | None:
        """None where the trainers go on without it, as it is not ready and takes too long."""
        left_s = max(0.0, ready_s - self._clock.now_s)
        if left_s and left_s > patience_s(self._training.now, self._measured(), left_s=left_s):
            return None
        num_before = len(self._training.members)
        self._training.members[gang_id] = self.gangs[gang_id].type
        pauses.append(left_s + self._reshard_s(num_before))
        return pauses[-1]

    def _reshard_s(self, num_before: int) -> float:
        return self._scenario.costs.reshard_s(tuple(self._training.members.values()), num_before)

    def _move(self, gang_id: str, state: GangState, reason: str) -> None:
        self.table.move(gang_id, state, time_s=self._clock.now_s, reason=reason)
