"""How a cluster is divided that several runs share, as ``events.jsonl`` has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from rlserve.tracking.events import Event


@dataclass(frozen=True, kw_only=True)
class ShareEvent(Event):
    """The runs of a cluster that is shared have it divided among them as this from now on."""

    kind: ClassVar[str] = "share"
    slots: Mapping[str, int]
    """That this run may have, by type."""
    num_lent: int
    """Slots that others have because this run gave them up."""
    num_borrowed: int
    """Slots that it has because others gave them up."""
    num_owed: int
    """Slots of its share that others have not given up so far."""
    runs: Mapping[str, int]
    """Slots of each of the others, by name."""
