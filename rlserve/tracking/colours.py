"""One colour a thing, in the terminal and in the report alike; told apart also by readers who do not see red."""

from __future__ import annotations

from collections.abc import Mapping

OWNER_COLOURS: Mapping[str, str] = {
    "train": "#3566b0",
    "rollout": "#e8963a",
    "moving": "#b9bec7",
    "dead": "#b3261e",
}
"""Who has a slot: keys are the owners of :class:`rlserve.tracking.events.SlotEvent`."""

REWARD = "#1f8a70"
HELD_OUT = "#14213d"
QUEUE = "#6b5ca5"
STALENESS = "#8a6d3b"
LOG_PROB_DIFFERENCE = "#a23b72"
KL = "#3f7cac"
ENTROPY = "#7a6f9b"
LENGTH = "#4f6d7a"
CUT = "#b3261e"
EQUAL_REWARDS = "#c9a227"
TEXT = "#2b2f36"
MUTED = "#858b95"
GRID = "#e6e8ec"
