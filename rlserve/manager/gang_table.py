"""The gang table: what every gang is doing, and so who owns its slots.

    starting ──> idle ──> joining_train ────> train ────> leaving_train ────> idle
                  │  ───> joining_rollout ──> rollout ──> leaving_rollout ──> idle
                                                │ ▲            ▲
                                                ▼ │            │
                                          called_to_train ─────┘
    any state ──> dead ──> starting          joining_* ──> idle (given up)     leaving_train ──> train (alone left)
    idle, dead ──> gone: its node has left

Slots of one gang change hands together. Ownership follows from the state, so a slot has exactly one owner at every
moment (I6), also when its worker crashes in the middle of a move.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from rlserve.errors import IllegalTransitionError


class GangState(StrEnum):
    """What a gang is doing."""

    STARTING = "starting"
    """Its worker processes come up."""
    IDLE = "idle"
    """Its workers are up and have no role."""
    JOINING_TRAIN = "joining_train"
    TRAIN = "train"
    LEAVING_TRAIN = "leaving_train"
    JOINING_ROLLOUT = "joining_rollout"
    ROLLOUT = "rollout"
    CALLED_TO_TRAIN = "called_to_train"
    """It rolls out as before, until the trainers are about to end their step."""
    LEAVING_ROLLOUT = "leaving_rollout"
    DEAD = "dead"
    """One of its worker processes is lost, and so is what the gang did."""
    GONE = "gone"
    """Its node has left the cluster, and it with it."""


class GangOwner(StrEnum):
    """Who may use a gang's slots."""

    POOL = "pool"
    TRAINER = "trainer"
    ROLLOUT = "rollout"
    NOBODY = "nobody"


OWNER: Mapping[GangState, GangOwner] = {
    GangState.STARTING: GangOwner.POOL,
    GangState.IDLE: GangOwner.POOL,
    GangState.JOINING_TRAIN: GangOwner.TRAINER,
    GangState.TRAIN: GangOwner.TRAINER,
    GangState.LEAVING_TRAIN: GangOwner.TRAINER,
    GangState.JOINING_ROLLOUT: GangOwner.ROLLOUT,
    GangState.ROLLOUT: GangOwner.ROLLOUT,
    GangState.CALLED_TO_TRAIN: GangOwner.ROLLOUT,
    GangState.LEAVING_ROLLOUT: GangOwner.ROLLOUT,
    GangState.DEAD: GangOwner.NOBODY,
    GangState.GONE: GangOwner.NOBODY,
}

LEGAL_MOVES: Mapping[GangState, frozenset[GangState]] = {
    GangState.STARTING: frozenset({GangState.IDLE, GangState.DEAD}),
    GangState.IDLE: frozenset({GangState.JOINING_TRAIN, GangState.JOINING_ROLLOUT, GangState.DEAD, GangState.GONE}),
    GangState.JOINING_TRAIN: frozenset({GangState.TRAIN, GangState.IDLE, GangState.DEAD}),
    GangState.TRAIN: frozenset({GangState.LEAVING_TRAIN, GangState.DEAD}),
    GangState.LEAVING_TRAIN: frozenset({GangState.IDLE, GangState.TRAIN, GangState.DEAD}),
    GangState.JOINING_ROLLOUT: frozenset({GangState.ROLLOUT, GangState.IDLE, GangState.DEAD}),
    GangState.ROLLOUT: frozenset({GangState.CALLED_TO_TRAIN, GangState.LEAVING_ROLLOUT, GangState.DEAD}),
    GangState.CALLED_TO_TRAIN: frozenset({GangState.LEAVING_ROLLOUT, GangState.ROLLOUT, GangState.DEAD}),
    GangState.LEAVING_ROLLOUT: frozenset({GangState.IDLE, GangState.DEAD}),
    GangState.DEAD: frozenset({GangState.STARTING, GangState.GONE}),
    GangState.GONE: frozenset(),
}


SERVING = (GangState.ROLLOUT, GangState.CALLED_TO_TRAIN)
"""States in which a gang generates."""


@dataclass(frozen=True, kw_only=True)
class GangTransition:
    """One change of a gang's state. The first of a gang has no ``before``."""

    time_s: float
    gang_id: str
    before: GangState | None
    after: GangState
    reason: str


class GangTable:
    """Owner of every gang's state, with the history of how it came about."""

    def __init__(self) -> None:
        self._states: dict[str, GangState] = {}
        self._num_slots: dict[str, int] = {}
        self._history: list[GangTransition] = []
        self._replayed: dict[str, GangState] = {}
        self._num_replayed = 0

    @property
    def gang_ids(self) -> tuple[str, ...]:
        """All gangs, in order of being added."""
        return tuple(self._states)

    @property
    def history(self) -> tuple[GangTransition, ...]:
        """Every transition so far, oldest first."""
        return tuple(self._history)

    @property
    def num_changes(self) -> int:
        """Transitions so far."""
        return len(self._history)

    def add(self, gang_id: str, *, num_slots: int = 1, time_s: float) -> None:
        """Add a gang, which begins as starting."""
        assert gang_id not in self._states, f"gang {gang_id} is already there"
        self._num_slots[gang_id] = num_slots
        self._note(gang_id, None, GangState.STARTING, time_s, "added")

    def state(self, gang_id: str) -> GangState:
        """What a gang is doing."""
        return self._states[gang_id]

    def owner(self, gang_id: str) -> GangOwner:
        """Who may use a gang's slots now."""
        return OWNER[self._states[gang_id]]

    def count(self, *states: GangState) -> int:
        """Number of slots whose gang is in one of ``states``."""
        return sum(self._num_slots[gang_id] for gang_id in self.in_state(*states))

    def in_state(self, *states: GangState) -> tuple[str, ...]:
        """Gangs in one of ``states``, in order of being added."""
        return tuple(gang_id for gang_id, current in self._states.items() if current in states)

    def entered_s(self, gang_id: str, *states: GangState) -> float:
        """When a gang last came to one of ``states``, in which it has been."""
        return next(
            change.time_s for change in reversed(self._history) if change.gang_id == gang_id and change.after in states
        )

    def move(self, gang_id: str, state: GangState, *, time_s: float, reason: str) -> None:
        """Move a gang to ``state``.

        Raises:
            IllegalTransitionError: the table of legal moves does not have it; nothing changes.
        """
        current = self._states[gang_id]
        if state not in LEGAL_MOVES[current]:
            raise IllegalTransitionError(f"{gang_id} cannot move from {current} to {state} ({reason})")
        self._note(gang_id, current, state, time_s, reason)

    def _note(self, gang_id: str, before: GangState | None, after: GangState, time_s: float, reason: str) -> None:
        self._states[gang_id] = after
        self._history.append(GangTransition(time_s=time_s, gang_id=gang_id, before=before, after=after, reason=reason))

    def check_integrity(self) -> None:
        """Assert that replaying the history, move by legal move, leads to the states that the table has (I6). What was
        replayed before is not replayed again."""
        replayed, first = self._replayed, self._num_replayed
        self._num_replayed = len(self._history)
        for transition in self._history[first:]:
            before = replayed.get(transition.gang_id)
            assert transition.before is before, f"{transition} does not follow on {before}"
            assert before is None or transition.after in LEGAL_MOVES[before], f"{transition} is illegal"
            replayed[transition.gang_id] = transition.after
        assert replayed == self._states, f"history leads to {replayed}, but the table has {self._states}"
