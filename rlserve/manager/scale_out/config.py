"""Configuration of growing a run beyond the slots that it begins with. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from rlserve.errors import check_fields


@dataclass(frozen=True, kw_only=True)
class ScaleOutConfig:
    """Nodes that the run asks Ray's autoscaler for while it has use for them: docs/clusters.md."""

    max_slots: dict[str, int] = field(default_factory=dict)
    """Most slots of each type that the run may have, those that it began with included: ``{L40S-spot: 16, H100: 8}``.
    Empty asks for none. A type must be one that nodes of the cluster's autoscaler offer; ``launch.kind`` must be
    ``cluster``."""
    min_slots: dict[str, int] = field(default_factory=dict)
    """Slots of those types that are asked for in any case, and never given back; 0 for types that are not named. Slots
    that ``pool.slots`` lists are never given back either."""
    slots_per_node: dict[str, int] = field(default_factory=dict)
    """Slots of a node of each of those types; 1 for types that are not named. Whole nodes are asked for, paid and given
    back."""
    money_per_hour: float | None = None
    """Most that all slots of the run together may cost an hour, by ``cost.prices``; None sets no limit but
    ``max_slots``."""
    min_return: float = 0.5
    """Least that one more node must bring, once rates are measured: the share by which the run trains more an hour,
    divided by the share by which it costs more (by which it has more slots, where no prices are given). With 1 a
    trained token never becomes dearer, with 0.5 the last ones may cost twice as much as the others. Half of it keeps a
    node that is there."""
    grow_after_s: float = 30.0
    """How long the run must have had use for more before they are asked for: the least of that time counts."""
    shrink_after_s: float = 300.0
    """How long it must have had no use for some before they are given back: the most of that time counts."""
    cooldown_s: float = 300.0
    """Least time between asking for more and giving back."""
    node_timeout_s: float = 600.0
    """A node that has not come so long after it was asked for is given up, and another type asked for, if any."""
    retry_after_s: float = 900.0
    """After that time the type is tried again."""

    @property
    def is_enabled(self) -> bool:
        """Whether any are asked for."""
        return bool(self.max_slots)

    def __post_init__(self) -> None:
        named = (*self.min_slots, *self.slots_per_node)
        unknown = sorted(name for name in {*named} if name not in self.max_slots)
        check_fields(
            self,
            {
                "max_slots": all(count >= self.node_slots(name) for name, count in self.max_slots.items())
                or "must be at least the slots of a node (scale_out.slots_per_node) for each type",
                "min_slots": all(
                    0 <= count <= self.max_slots.get(name, count) for name, count in self.min_slots.items()
                )
                or "must be between 0 and scale_out.max_slots for each type",
                "slots_per_node": all(count >= 1 for count in self.slots_per_node.values())
                or "must be at least 1 each",
                "money_per_hour": self.money_per_hour is None or self.money_per_hour > 0 or "must be above 0",
                "min_return": self.min_return >= 0 or "must be at least 0",
                "grow_after_s": self.grow_after_s >= 0 or "must be at least 0",
                "shrink_after_s": self.shrink_after_s >= 0 or "must be at least 0",
                "cooldown_s": self.cooldown_s >= 0 or "must be at least 0",
                "node_timeout_s": self.node_timeout_s > 0 or "must be above 0",
                "retry_after_s": self.retry_after_s >= 0 or "must be at least 0",
            }
            | (
                {"max_slots": f"must have the types of min_slots and slots_per_node: {', '.join(unknown)}"}
                if unknown
                else {}
            ),
        )

    def node_slots(self, type_name: str) -> int:
        """Slots of a node of this type."""
        return max(1, self.slots_per_node.get(type_name, 1))
