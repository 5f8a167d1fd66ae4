"""The slot table: what every slot is doing, and so who owns it.

    starting ──> idle ──> joining_train ────> train ────> leaving_train ────> idle
                  │  ───> joining_rollout ──> rollout ──> leaving_rollout ──> idle
    any state ──> dead ──> starting          joining_* ──> idle (given up)

Ownership follows from the state, so a slot has exactly one owner at every moment (I6), also when it crashes in the
middle of a move.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from rlserve.errors import IllegalTransitionError


class SlotState(StrEnum):
    """What a slot is doing."""

    STARTING = "starting"
    """Its worker process comes up."""
    IDLE = "idle"
    """Its worker is up and has no role."""
    JOINING_TRAIN = "joining_train"
    TRAIN = "train"
    LEAVING_TRAIN = "leaving_train"
    JOINING_ROLLOUT = "joining_rollout"
    ROLLOUT = "rollout"
    LEAVING_ROLLOUT = "leaving_rollout"
    DEAD = "dead"
    """Its worker process is gone."""


class SlotOwner(StrEnum):
    """Who may use a slot."""

    POOL = "pool"
    TRAINER = "trainer"
    ROLLOUT = "rollout"
    NOBODY = "nobody"


OWNER: Mapping[SlotState, SlotOwner] = {
    SlotState.STARTING: SlotOwner.POOL,
    SlotState.IDLE: SlotOwner.POOL,
    SlotState.JOINING_TRAIN: SlotOwner.TRAINER,
    SlotState.TRAIN: SlotOwner.TRAINER,
    SlotState.LEAVING_TRAIN: SlotOwner.TRAINER,
    SlotState.JOINING_ROLLOUT: SlotOwner.ROLLOUT,
    SlotState.ROLLOUT: SlotOwner.ROLLOUT,
    SlotState.LEAVING_ROLLOUT: SlotOwner.ROLLOUT,
    SlotState.DEAD: SlotOwner.NOBODY,
}

LEGAL_MOVES: Mapping[SlotState, frozenset[SlotState]] = {
    SlotState.STARTING: frozenset({SlotState.IDLE, SlotState.DEAD}),
    SlotState.IDLE: frozenset({SlotState.JOINING_TRAIN, SlotState.JOINING_ROLLOUT, SlotState.DEAD}),
    SlotState.JOINING_TRAIN: frozenset({SlotState.TRAIN, SlotState.IDLE, SlotState.DEAD}),
    SlotState.TRAIN: frozenset({SlotState.LEAVING_TRAIN, SlotState.DEAD}),
    SlotState.LEAVING_TRAIN: frozenset({SlotState.IDLE, SlotState.DEAD}),
    SlotState.JOINING_ROLLOUT: frozenset({SlotState.ROLLOUT, SlotState.IDLE, SlotState.DEAD}),
    SlotState.ROLLOUT: frozenset({SlotState.LEAVING_ROLLOUT, SlotState.DEAD}),
    SlotState.LEAVING_ROLLOUT: frozenset({SlotState.IDLE, SlotState.DEAD}),
    SlotState.DEAD: frozenset({SlotState.STARTING}),
}


@dataclass(frozen=True, kw_only=True)
class SlotTransition:
    """One change of a slot's state. The first of a slot has no ``before``."""

    time_s: float
    slot_id: str
    before: SlotState | None
    after: SlotState
    reason: str


class SlotTable:
    """Owner of every slot's state, with the history of how it came about."""

    def __init__(self) -> None:
        self._states: dict[str, SlotState] = {}
        self._history: list[SlotTransition] = []
        self._replayed: dict[str, SlotState] = {}
        self._num_replayed = 0

    @property
    def slot_ids(self) -> tuple[str, ...]:
        """All slots, in order of being added."""
        return tuple(self._states)

    @property
    def history(self) -> tuple[SlotTransition, ...]:
        """Every transition so far, oldest first."""
        return tuple(self._history)

    def add(self, slot_id: str, *, time_s: float) -> None:
        """Add a slot, which begins as starting."""
        assert slot_id not in self._states, f"slot {slot_id} is already there"
        self._note(slot_id, None, SlotState.STARTING, time_s, "added")

    def state(self, slot_id: str) -> SlotState:
        """What a slot is doing."""
        return self._states[slot_id]

    def owner(self, slot_id: str) -> SlotOwner:
        """Who may use a slot now."""
        return OWNER[self._states[slot_id]]

    def count(self, state: SlotState) -> int:
        """Number of slots in ``state``."""
        return sum(current is state for current in self._states.values())

    def move(self, slot_id: str, state: SlotState, *, time_s: float, reason: str) -> None:
        """Move a slot to ``state``.

        Raises:
            IllegalTransitionError: the table of legal moves does not have it; nothing changes.
        """
        current = self._states[slot_id]
        if state not in LEGAL_MOVES[current]:
            raise IllegalTransitionError(f"slot {slot_id} cannot move from {current} to {state} ({reason})")
        self._note(slot_id, current, state, time_s, reason)

    def _note(self, slot_id: str, before: SlotState | None, after: SlotState, time_s: float, reason: str) -> None:
        self._states[slot_id] = after
        self._history.append(SlotTransition(time_s=time_s, slot_id=slot_id, before=before, after=after, reason=reason))

    def check_integrity(self) -> None:
        """Assert that replaying the history, move by legal move, leads to the states that the table has (I6). What was
        replayed before is not replayed again."""
        replayed, first = self._replayed, self._num_replayed
        self._num_replayed = len(self._history)
        for transition in self._history[first:]:
            before = replayed.get(transition.slot_id)
            assert transition.before is before, f"{transition} does not follow on {before}"
            assert before is None or transition.after in LEGAL_MOVES[before], f"{transition} is illegal"
            replayed[transition.slot_id] = transition.after
        assert replayed == self._states, f"history leads to {replayed}, but the table has {self._states}"
