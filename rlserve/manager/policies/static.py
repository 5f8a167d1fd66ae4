"""The policy that moves nothing: the split of the start stays."""

from __future__ import annotations

from rlserve.manager.policies.base import Observation, Plan, Policy


class StaticPolicy(Policy[None]):
    """Never moves a slot."""

    def initial_state(self) -> None:
        """There is none."""

    def decide(self, observation: Observation, state: None) -> tuple[Plan, None]:
        """An empty plan."""
        return Plan(reason="the split is static"), None
