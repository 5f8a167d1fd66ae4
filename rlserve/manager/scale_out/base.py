"""What a decision about nodes is made of. Plain data, in whole nodes; times are seconds on the caller's clock.

wish (gangs that the run has use for)  +  nodes that are there  ──► decide (pure) ──►  nodes to ask for, to give up
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rlserve.manager.policies.base import GangFigures


@dataclass(frozen=True, kw_only=True)
class NodeType:
    """A kind of node that may be asked for."""

    name: str
    """Of its slots."""
    num_gangs: int
    """That its slots make."""
    num_slots: int
    min_nodes: int = 0
    max_nodes: int
    price_per_hour: float | None = None
    """Of the whole node; None where none is given."""
    figures: GangFigures
    """Of one slot."""
    may_train: bool = True

    @property
    def rank(self) -> tuple[bool, float]:
        """The smaller, the sooner it is asked for: by price for its memory bandwidth, by which decoding is bound;
        unpriced ones last."""
        bandwidth = self.figures.memory_bandwidth_gb_s * self.num_slots
        if self.price_per_hour is None:
            return True, -bandwidth
        return False, self.price_per_hour / bandwidth


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What holds for the whole run."""

    types: tuple[NodeType, ...]
    by_rates: bool = False
    """Whether the policy goes by measured rates; else it is the queue that says how much is wanted."""
    min_return: float = 0.5
    """Least that one more node must bring by rates: the share that more is trained, by the share that more is paid."""
    money_per_hour: float | None = None
    """Of all slots of the run."""
    grow_after_s: float
    shrink_after_s: float
    cooldown_s: float
    node_timeout_s: float
    retry_after_s: float

    @property
    def ranked(self) -> tuple[NodeType, ...]:
        """In the order in which they are asked for."""
        return tuple(sorted(self.types, key=lambda each: each.rank))

    def ladder(self, asked: Mapping[str, int]) -> tuple[NodeType, ...]:
        """All nodes that may be asked for, in order, those first that are asked for already."""
        first = [each for each in self.ranked for _ in range(asked.get(each.name, 0))]
        more = [each for each in self.ranked for _ in range(each.max_nodes - asked.get(each.name, 0))]
        return (*first, *more)


@dataclass(frozen=True, kw_only=True)
class NodeView:
    """A node with slots of one of those types that the run has, or had and which is still there."""

    id: str
    type: str
    is_ending: bool = False
    """None of its gangs will be there for long: it was given up, or has said that it leaves."""
    trains: bool = False
    """A gang of it trains."""


@dataclass(frozen=True, kw_only=True)
class Situation:
    """The run at one moment."""

    time_s: float
    num_wanted: int | None
    """Gangs of the scaled types that the run has use for; None where that is not known."""
    why: str
    """In words."""
    nodes: tuple[NodeView, ...]
    num_other_gangs: int
    """Of other types, which stay."""
    other_price_per_hour: float = 0.0
    """Of their slots."""


@dataclass(frozen=True, kw_only=True)
class AskState:
    """What is remembered between two decisions."""

    wishes: tuple[tuple[float, int], ...] = ()
    """When how many gangs were wanted."""
    target: int | None = None
    """Gangs that are made for; None before the first decision."""
    asked: Mapping[str, int] = field(default_factory=dict)
    """Nodes by type."""
    here: Mapping[str, int] = field(default_factory=dict)
    """Nodes by type that stayed, when it was decided last."""
    waits_since_s: Mapping[str, float] = field(default_factory=dict)
    """Since when nodes are waited for, by type: the last of them came then, or was asked for."""
    refused_until_s: Mapping[str, float] = field(default_factory=dict)
    """Types of which nodes did not come, and until when they are not tried again."""
    grown_s: float | None = None
    """When more were asked for."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What to do now."""

    asked: Mapping[str, int]
    """Nodes by type that the cluster shall have for the run, those that it has included."""
    give_up: tuple[str, ...] = ()
    """Ids of nodes that are to be emptied."""
    late: Mapping[str, int] = field(default_factory=dict)
    """Nodes by type that did not come in time, and are asked for no more."""
    reason: str
    obstacle: str | None = None
    """Why it is fewer than the run has use for."""
