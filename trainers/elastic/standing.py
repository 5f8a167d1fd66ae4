"""What ranks bring into a new group, and which step they go on from: pure functions.

A rank that fails in mid-step is in one of three places::

    gradients of the last update ──► all ranks have them ──► applied ──► parameters gathered ──► step completed
              "before"                "can complete"                      "after"

Whoever has applied the last update knows that all others hold the gradient of it. So where one survivor is "after",
all others complete the step; where none is, all go back to before it. Either way they agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from rlserve.errors import StateLostError
from rlserve.trainers.elastic.intervals import Interval, Intervals, has_single

NOTHING = -1
"""``num_steps`` of a rank that has no state yet."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One rank, at the boundary before a step that it has not completed."""

    num_steps: int
    num_updates: int
    shards: Intervals
    """Whose optimizer state, and parameters, it holds for certain."""
    has_all_parameters: bool
    """Also those of other shards, as they are after ``num_steps`` steps."""
    can_complete: bool = False
    """Whether it holds the gradient that completes the next step."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Of the last step."""
    carried: Mapping[str, float] = field(default_factory=dict)
    """Numbers that the algorithm carries from step to step."""

    def note(self) -> dict[str, Any]:
        """As JSON knows it."""
        return asdict(self)

    @classmethod
    def from_note(cls, note: Mapping[str, Any]) -> Standing:
        """Back from ``note``."""
        return cls(**{**note, "shards": tuple(Interval(*shard) for shard in note["shards"])})


def common_step(standings: Sequence[Standing]) -> Standing:
    """A rank that stands where all others go on from.

    Raises:
        StateLostError: no rank holds any state, or one cannot come to the step that another has completed.
    """
    furthest = max(standings, key=lambda standing: standing.num_steps)
    if furthest.num_steps == NOTHING:
        raise StateLostError("no trainer is left that holds the state")
    for rank, standing in enumerate(standings):
        behind = furthest.num_steps - standing.num_steps
        if standing.num_steps != NOTHING and not (behind == 0 or (behind == 1 and standing.can_complete)):
            raise StateLostError(
                f"rank {rank} holds the state after step {standing.num_steps} and another that after step "
                f"{furthest.num_steps}"
            )
    return furthest


def settled(standing: Standing, num_steps: int) -> Standing:
    """The same rank after it has completed, or taken back, what it was in the middle of."""
    if standing.num_steps in (NOTHING, num_steps):
        return replace(standing, can_complete=False)
    return replace(standing, num_steps=num_steps, can_complete=False, has_all_parameters=False)


def may_go_on(standings: Sequence[Standing], *, gang_size: int) -> bool:
    """Whether ranks that join can get their state beside the next step: all others stand at the same boundary with all
    parameters, and any of their gangs may be lost before everything has come in. Where there is one gang alone, a
    second holder of the state comes before the next step."""
    old = [standing for standing in standings if standing.num_steps != NOTHING]
    gangs = [
        [shard for standing in standings[first : first + gang_size] for shard in standing.shards]
        for first in range(0, len(standings), gang_size)
    ]
    return (
        len(old) < len(standings)
        and len({standing.num_steps for standing in old}) == 1
        and all(standing.has_all_parameters and not standing.can_complete for standing in old)
        and not has_single(gangs)
    )
