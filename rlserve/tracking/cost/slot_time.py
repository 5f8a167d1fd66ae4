"""Whose a slot is, and which of its time is not explained yet.

::

    ├── starting ──┤ joining ├────── train ──────────────┤ leaving ├──── rollout ─────
      its state says what      steps explain it, each      …          the replica explains it,
      it was used for          when it is done                        a few seconds at a time
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rlserve.tracking.cost.accounts import Account
from rlserve.tracking.cost.uses import Use
from rlserve.tracking.events import Owner


@dataclass(frozen=True)
class Span:
    """A part of a slot's time."""

    begin_ns: int
    end_ns: int
    is_lost: bool = False
    """It ended because a worker was lost."""


@dataclass(kw_only=True)
class SlotTime:
    """One slot of the run."""

    slot_type: str
    gang_id: str
    owner: Owner
    state: str
    since_ns: int
    """Until then all is explained but what is in ``trained``."""
    has_had_role: bool = False
    """Since it came to the run, or the run was taken up."""
    is_recovering: bool = False
    """It has lost its worker, and no role since."""
    trained: list[Span] = field(default_factory=list)
    """When it was a trainer and no step has told of it yet."""

    @property
    def account(self) -> Account:
        """That its time goes to now."""
        return Account(self.slot_type, self.owner)

    @property
    def has_role(self) -> bool:
        """Whether events of its role explain its time; else its state does."""
        return self.owner in ("train", "rollout")

    def change(self, owner: Owner, state: str, time_ns: int) -> None:
        """It is somebody else's now."""
        self.owner, self.state, self.since_ns = owner, state, time_ns
        if self.has_role:
            self.has_had_role, self.is_recovering = True, False
        elif owner == "dead":
            self.is_recovering = True

    def use_without_role(self) -> Use:
        """What its time is used for where it has no role."""
        if self.is_recovering:
            return Use.LOST
        if not self.has_had_role:
            return Use.STARTUP
        return Use.IDLE if self.state == "idle" else Use.SWITCHING
