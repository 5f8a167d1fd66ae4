"""How many slots a run could use now. Pure.

A run takes whatever it gets, until a replica has nothing to do: not for a while, nor for two training steps, since
with a tight bound on staleness all replicas wait for each step. Its slots are free for others then. They are claimed
again once prompt groups have waited for a replica just as long. What is neither leaves everything as it is, so a load
in between moves nothing to and fro.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

_NUM_STEPS = 2


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a run has to do, at one moment."""

    time_s: float
    num_steps: int
    """Training steps done."""
    num_slots: int
    """That it has."""
    has_queue: bool
    """Whether anything waits for a replica."""
    idle: Mapping[str, int] = field(default_factory=dict)
    """Slots of each replica that has nothing to do."""


@dataclass(frozen=True, kw_only=True)
class Since:
    """When something began."""

    time_s: float
    num_steps: int


@dataclass(frozen=True, kw_only=True)
class Need:
    """What a run could use, and what that rests on."""

    useful: int | None = None
    """Slots; None is as many as it gets."""
    idle_since: Mapping[str, Since] = field(default_factory=dict)
    queue_since_s: float | None = None


def need_after(need: Need, load: Load, *, idle_s: float) -> Need:
    """What a run could use, after another look at its load."""
    now = Since(time_s=load.time_s, num_steps=load.num_steps)
    idle_since = {replica: need.idle_since.get(replica, now) for replica in load.idle}
    queue_since_s = None
    if load.has_queue:
        queue_since_s = load.time_s if need.queue_since_s is None else need.queue_since_s
    need = replace(need, idle_since=idle_since, queue_since_s=queue_since_s)
    if queue_since_s is not None:
        return replace(need, useful=None) if load.time_s - queue_since_s >= idle_s else need
    num_idle = sum(
        load.idle[replica]
        for replica, since in idle_since.items()
        if load.time_s - since.time_s >= idle_s and load.num_steps - since.num_steps >= _NUM_STEPS
    )
    return replace(need, useful=load.num_slots - num_idle) if num_idle else need
