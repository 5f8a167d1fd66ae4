"""Observe, decide, act: the real policy and the real measurement, and moves in phases that cost what the scenario says.

::

    rollout → train   serves no more ─ sleep ─ wait for the step's end ─ the trainers re-form with it (training pauses)
    train → rollout   wait for the step's end ─ the trainers re-form without it ─ wake ─ weights ─ serves
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rlserve.manager.gang_table import GangState, GangTable
from rlserve.manager.measurement.figures import Measurements
from rlserve.manager.measurement.readings import MoveDone
from rlserve.manager.policies.base import GangView, Observation, Policy
from rlserve.manager.roles import Role
from rlserve.simulate.clock import Clock, Process
from rlserve.simulate.generation import Generation
from rlserve.simulate.journal import Journal
from rlserve.simulate.scenario import Scenario
from rlserve.simulate.training import Training
from rlserve.simulate.weights import Weights

_ROLES = {GangState.TRAIN: Role.TRAIN, GangState.ROLLOUT: Role.ROLLOUT}


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
        begin_s, self._moving = self._clock.now_s, True
        pauses: list[float] = []
        if self.table.state(gang_id) is GangState.ROLLOUT:
            yield from self._leave_rollout(gang_id, reason)
        elif self.table.state(gang_id) is GangState.TRAIN:
            yield self._training.at_boundary(lambda: self._leave_training(gang_id, reason, pauses))
            self._move(gang_id, GangState.IDLE, reason)
        if to is Role.ROLLOUT:
            yield from self._take_rollout(gang_id, reason)
        else:
            self._move(gang_id, GangState.JOINING_TRAIN, reason)
            yield self._training.at_boundary(lambda: self._join_training(gang_id, pauses))
            self._move(gang_id, GangState.TRAIN, reason)
        self._moving = False
        now_s = self._last_move_end_s = self._clock.now_s
        self._journal.moves.append((begin_s, now_s, gang_id, to))
        self._journal.note(MoveDone(begin_s=begin_s, end_s=now_s, gang_id=gang_id, to=to, trainer_pause_s=sum(pauses)))

    def _leave_rollout(self, gang_id: str, reason: str) -> Process:
        self._move(gang_id, GangState.LEAVING_ROLLOUT, reason)
        self._generation.leave(gang_id)
        yield self._scenario.costs.sleep_s(self.gangs[gang_id].type)
        self._move(gang_id, GangState.IDLE, reason)

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

    def _join_training(self, gang_id: str, pauses: list[float]) -> float:
        num_before = len(self._training.members)
        self._training.members[gang_id] = self.gangs[gang_id].type
        pauses.append(self._reshard_s(num_before))
        return pauses[-1]

    def _reshard_s(self, num_before: int) -> float:
        return self._scenario.costs.reshard_s(tuple(self._training.members.values()), num_before)

    def _move(self, gang_id: str, state: GangState, reason: str) -> None:
        self.table.move(gang_id, state, time_s=self._clock.now_s, reason=reason)
