"""Configuration of a run that shares its cluster with others. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from rlserve.errors import check_fields


@dataclass(frozen=True, kw_only=True)
class ShareConfig:
    """Several runs on one Ray cluster (``launch=cluster``) share its slots: each says what it needs, and what it does
    not use, or another has a claim to, is lent. What runs have that do not share is left to them."""

    enabled: bool = False
    """Whether this run lends to others, and borrows from them."""
    priority: int = 0
    """Above its floor, a run with a higher one has as many slots as it can use before others have any. What runs of the
    same priority can use is divided evenly."""
    floor: int | None = None
    """Slots of each type that no other run takes from this one, and without which it does not begin. None is the least
    that a run needs: two gangs, or one where all gangs do the same."""
    floors: dict[str, int] = field(default_factory=dict)
    """Floors of types for which ``floor`` is not right: ``{H100: 8, L40S: 0}``."""
    most: int | None = None
    """Slots of each type that this run takes at most; None is as many as ``pool.slots`` says."""
    idle_s: float = 30.0
    """How long a replica has nothing to do before its slots are free for others, and how long prompt groups wait for a
    replica before slots that were free are claimed again."""
    wait_s: float = 600.0
    """How long a run that begins waits for its floor."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            {
                "floor": self.floor is None or self.floor >= 0 or "must be at least 0",
                "floors": all(count >= 0 for count in self.floors.values()) or "must be at least 0",
                "most": self.most is None or self.most >= max(self.floor or 0, 1) or "must be at least 1 and the floor",
                "idle_s": self.idle_s >= 0 or "must be at least 0",
                "wait_s": self.wait_s >= 0 or "must be at least 0",
            },
        )
