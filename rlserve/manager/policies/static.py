"""The policy that moves nothing: the split of the start stays, but for gangs that come and go."""

from __future__ import annotations

from rlserve.manager.config import StaticConfig
from rlserve.manager.policies.base import Observation, Plan, Policy
from rlserve.manager.policies.bounds import rollout_bounds
from rlserve.manager.policies.placement import needed_move


class StaticPolicy(Policy[None]):
    """Never moves a gang because of the load."""

    def __init__(self, config: StaticConfig) -> None:
        self._config = config

    def initial_state(self) -> None:
        """There is none."""

    def decide(self, observation: Observation, state: None) -> tuple[Plan, None]:
        """An empty plan, unless a gang is new or a role is empty."""
        needed = needed_move(observation, *rollout_bounds(self._config, observation.staying))
        if needed is None:
            return Plan(reason="the split is static"), None
        move, reason = needed
        return Plan(moves=(move,), reason=reason), None
