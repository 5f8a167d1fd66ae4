"""The policy of a run that generates nothing: every gang trains."""

from __future__ import annotations

from rlserve.manager.policies.base import Move, Observation, Plan, Policy
from rlserve.manager.roles import Role


class TrainOnlyPolicy(Policy[None]):
    """Lets gangs that are new join the trainers."""

    def initial_state(self) -> None:
        """There is none."""

    def decide(self, observation: Observation, state: None) -> tuple[Plan, None]:
        """An empty plan, unless a gang is idle."""
        idle = min((gang.id for gang in observation.staying if gang.idle), default=None)
        if idle is None or observation.moving:
            return Plan(reason=f"every {observation.unit} trains"), None
        return Plan(moves=(Move(gang_id=idle, to=Role.TRAIN),), reason=f"a new {observation.unit}"), None
