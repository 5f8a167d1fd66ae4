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
from rlserve.simulate.clock import Clock, Latch, Process
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
        self.gangs = {gang.id: gang for gang in scenario.gangs}
        self.leaving = set[str]()
        """Gangs whose node will leave."""
        self._clock = clock
        self._scenario = scenario
        self._journal = journal
        self._generation = generation
        self._training = training
        self._weights = weights
        self._policy = policy
        self._policy_state = policy.initial_state()
        self._moving = False
        self._turn_ended = Latch()
        self._last_move_end_s: float | None = None
        self._views: tuple[GangView, ...] = ()
        self._num_seen = (0, 0, False)
        """Changes that the views show."""

    def begin(self, roles: Mapping[str, Role]) -> None:
        """Give every gang its first role."""
        for gang_id in self.gangs:
            self.table.add(gang_id, time_s=0.0)
            self.enter(gang_id, GangState.IDLE, "is up")
        for gang_id, role in roles.items():
            if role is Role.TRAIN:
                self.enter(gang_id, GangState.JOINING_TRAIN, "initial split")
                self._training.members[gang_id] = self.gangs[gang_id].type
                self.enter(gang_id, GangState.TRAIN, "initial split")
            else:
                self.enter(gang_id, GangState.JOINING_ROLLOUT, "initial split")
                self._generation.join(gang_id, self.gangs[gang_id].type, self._weights.version)
                self.enter(gang_id, GangState.ROLLOUT, "initial split")

    def run(self, interval_s: float) -> Process:
        """Decide and act, until the end of time."""
        while True:
            yield interval_s
            plan, self._policy_state = self._policy.decide(self.observe(), self._policy_state)
            for move in plan.moves:
                yield from self.take_turn()
                if self._may_move(move.gang_id, move.to):
                    yield from self._change_role(move.gang_id, move.to, plan.reason)
                self.end_turn()

    def take_turn(self) -> Process:
        """Wait until nothing changes its role: one at a time."""
        while self._moving:
            yield self._turn_ended
        self._moving = True

    def end_turn(self) -> None:
        """Another may have it."""
        self._moving = False
        latch, self._turn_ended = self._turn_ended, Latch()
        latch.open()

    def spare_gangs(self) -> list[str]:
        """Gangs that a run can do without, and that are not being moved."""
        if self._moving:
            return []
        return [gang_id for gang_id in self.table.gang_ids if gang_id not in self.leaving and self.may_leave(gang_id)]

    def may_leave(self, gang_id: str) -> bool:
        """Whether a gang has a role that another has too, or none."""
        state = self.table.state(gang_id)
        if state is GangState.TRAIN:
            return gang_id in self._training.members and len(self._training.members) > 1
        if state is GangState.ROLLOUT:
            return len(self._generation.replicas) > 1
        return state is GangState.IDLE

    def lose(self, gang_id: str, reason: str) -> Role:
        """A gang is lost with what it has; returns the role that it had."""
        role = Role.ROLLOUT
        if self.table.state(gang_id) is GangState.ROLLOUT:
            self._generation.leave(gang_id, lost=True)
        elif gang_id in self._training.members:
            role = Role.TRAIN
            num_before = len(self._training.members)
            self._training.lose(gang_id, lambda: self._reshard_s(num_before))
        self.enter(gang_id, GangState.DEAD, reason)
        return role

    def add(self, gang: GangView) -> None:
        """A gang starts, which was not there before."""
        self.gangs[gang.id] = gang
        self.table.add(gang.id, time_s=self._clock.now_s)
        self._journal.spending.note_gang(gang, GangState.STARTING)

    def take(self, gang_id: str, role: Role, reason: str) -> Process:
        """An idle gang takes a role. The caller has the turn."""
        if role is Role.ROLLOUT:
            yield from self._take_rollout(gang_id, reason)
        else:
            self.enter(gang_id, GangState.JOINING_TRAIN, reason)
            yield self._training.at_boundary(lambda: self._join_training(gang_id, self._clock.now_s, []))
            self.enter(gang_id, GangState.TRAIN, reason)

    def give_up(self, gang_id: str, reason: str) -> Process:
        """A gang gives its role up, unless it is lost before. The caller has the turn."""
        state = self.table.state(gang_id)
        if state is GangState.TRAIN:
            yield self._training.at_boundary(lambda: self._leave_training(gang_id, reason, []))
        elif state is GangState.ROLLOUT:
            self.enter(gang_id, GangState.LEAVING_ROLLOUT, reason)
            self._generation.leave(gang_id)
        if self.table.state(gang_id) in (GangState.LEAVING_TRAIN, GangState.LEAVING_ROLLOUT):
            yield self._scenario.costs.sleep_s(self.gangs[gang_id].type)
            self.enter(gang_id, GangState.IDLE, reason)

    def enter(self, gang_id: str, state: GangState, reason: str) -> None:
        """Note what a gang does from now on."""
        self._generation.tell(gang_id)
        self.table.move(gang_id, state, time_s=self._clock.now_s, reason=reason)
        self._journal.spending.note_gang(self.gangs[gang_id], state)

    def _may_move(self, gang_id: str, to: Role) -> bool:
        """Whether it is still what the policy has seen."""
        state = self.table.state(gang_id)
        if gang_id in self.leaving:
            return False
        return state is GangState.IDLE or _ROLES.get(state) not in (None, to)

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
            num_steps_left=self._num_steps_left(),
            admission=self._scenario.admission,
            measured=self._measured(),
            gangs=self._gang_views(),
            legal_trainer_sizes=tuple(range(1, len(self._gang_views()))),
            moving=self._moving,
            last_move_end_s=self._last_move_end_s,
        )

    def _num_steps_left(self) -> int | None:
        num_steps = self._scenario.num_steps
        return None if num_steps is None else num_steps - self._journal.num_steps

    def _measured(self) -> Measurements:
        if self._journal.meter is not None:
            self._generation.poll()
        return self._journal.measured(self._clock.now_s)

    def _gang_views(self) -> tuple[GangView, ...]:
        num_changes = (self.table.num_changes, len(self.leaving), self._moving)
        if num_changes != self._num_seen:
            self._num_seen = num_changes
            self._views = tuple(
                replace(
                    self.gangs[gang_id],
                    role=_ROLES.get(state),
                    idle=state is GangState.IDLE and not self._moving,
                    alive=state is not GangState.DEAD,
                    leaving=gang_id in self.leaving,
                )
                for gang_id in self.table.gang_ids
                if (state := self.table.state(gang_id)) is not GangState.GONE
            )
        return self._views

    def _change_role(self, gang_id: str, to: Role, reason: str) -> Process:
        pauses: list[float] = []
        if self.table.state(gang_id) is GangState.IDLE:
            yield from self.take(gang_id, to, reason)
            self._last_move_end_s = self._clock.now_s
            return
        if to is Role.ROLLOUT:
            yield self._training.at_boundary(lambda: self._leave_training(gang_id, reason, pauses))
            yield self._scenario.costs.sleep_s(self.gangs[gang_id].type)
            self.enter(gang_id, GangState.IDLE, reason)
            yield from self._take_rollout(gang_id, reason)
        else:
            yield from self._wait_to_leave(gang_id, reason)
            yield from self._go_to_training(gang_id, reason, pauses)
        begin_s = self.table.entered_s(gang_id, GangState.LEAVING_ROLLOUT, GangState.LEAVING_TRAIN)
        now_s = self._last_move_end_s = self._clock.now_s
        self._journal.moves.append((begin_s, now_s, gang_id, to))
        self._journal.note(MoveDone(begin_s=begin_s, end_s=now_s, gang_id=gang_id, to=to, trainer_pause_s=sum(pauses)))

    def _wait_to_leave(self, gang_id: str, reason: str) -> Process:
        self.enter(gang_id, GangState.CALLED_TO_TRAIN, reason)
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
        self.enter(gang_id, GangState.LEAVING_ROLLOUT, reason)
        self._generation.leave(gang_id)
        sleep_s = self._scenario.costs.sleep_s(self.gangs[gang_id].type)
        ready_s = self._clock.now_s + sleep_s
        joined = self._training.at_boundary(lambda: self._join_training(gang_id, ready_s, pauses))
        yield sleep_s
        self._journal.note(RolloutLeft(end_s=ready_s, gang_id=gang_id, duration_s=sleep_s))
        self.enter(gang_id, GangState.IDLE, reason)
        self.enter(gang_id, GangState.JOINING_TRAIN, reason)
        self._training.go_on()
        yield joined
        self.enter(gang_id, GangState.TRAIN, reason)

    def _take_rollout(self, gang_id: str, reason: str) -> Process:
        costs, type_name = self._scenario.costs, self.gangs[gang_id].type
        self.enter(gang_id, GangState.JOINING_ROLLOUT, reason)
        yield costs.wake_s(type_name)
        version = self._weights.version
        yield costs.weights_s(type_name)
        self._generation.join(gang_id, type_name, version)
        self.enter(gang_id, GangState.ROLLOUT, reason)
        self._weights.bring_up(self._generation.replicas[gang_id])

    def _leave_training(self, gang_id: str, reason: str, pauses: list[float]) -> float:
        if gang_id not in self._training.members or len(self._training.members) == 1:
            return 0.0  # it is lost, or others are
        self.enter(gang_id, GangState.LEAVING_TRAIN, reason)
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
