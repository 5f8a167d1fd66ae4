"""The ledger: owner of every prompt group's state.

    admit ──> pending ──> running ──> scored ──> buffered ──> trained
                 ^           │
                 └───────────┘ its replica was lost or left (attempt + 1)
    pending | running | scored | buffered ──> dropped(reason)

Two rules of a run live here. Every admitted group ends in exactly one of trained or dropped, and the number of
admitted groups is the position in the data set (I1). Groups are admitted only while fewer than
``(max_staleness + 1) * prompts_per_step`` are live; together with ``rlserve.rollout.buffer`` this bounds staleness.
A batch that is being trained stays ``buffered`` until its step is done, so admission cannot run ahead of the weights
and a step that is rolled back loses nothing.

Only live groups are remembered; ended ones are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from rlserve.errors import IllegalTransitionError


class GroupState(StrEnum):
    """Where a prompt group is."""

    PENDING = "pending"
    """Admitted, waiting for a replica."""
    RUNNING = "running"
    """Given to a replica: being generated or scored."""
    SCORED = "scored"
    """Generated, with a reward for each sample."""
    BUFFERED = "buffered"
    """Waiting for the trainer, or in the batch of the step under way."""
    TRAINED = "trained"
    DROPPED = "dropped"


LEGAL_MOVES: Mapping[GroupState, frozenset[GroupState]] = {
    GroupState.PENDING: frozenset({GroupState.RUNNING, GroupState.DROPPED}),
    GroupState.RUNNING: frozenset({GroupState.SCORED, GroupState.PENDING, GroupState.DROPPED}),
    GroupState.SCORED: frozenset({GroupState.BUFFERED, GroupState.DROPPED}),
    GroupState.BUFFERED: frozenset({GroupState.TRAINED, GroupState.DROPPED}),
    GroupState.TRAINED: frozenset(),
    GroupState.DROPPED: frozenset(),
}

LIVE_STATES = tuple(state for state, moves in LEGAL_MOVES.items() if moves)
IN_FLIGHT_STATES = tuple(state for state in LIVE_STATES if state is not GroupState.BUFFERED)


@dataclass(frozen=True, kw_only=True)
class GroupRecord:
    """What the ledger knows of one live group. Times are the caller's."""

    id: str
    position: int
    state: GroupState
    oldest_version: int
    """No token of the group is from older weights: the trainer's version at admission, and once a replica has started
    the group, that replica's version then. So a group does not age while it waits for a replica."""
    attempt: int
    """How often it had to start over."""
    changed_s: float
    """When it entered its state."""


class Ledger:
    """Admits prompt groups in the order of the data set and moves them along the table of legal moves."""

    def __init__(self, *, prompts_per_step: int, max_staleness: int) -> None:
        self.max_staleness = max_staleness
        self.max_live = (max_staleness + 1) * prompts_per_step
        self._live: dict[str, GroupRecord] = {}  # in order of position
        self._in_flight: Counter[int] = Counter()
        """Live groups that are not buffered, by the version of their oldest token."""
        self._num_admitted = 0
        self._num_trained = 0
        self._dropped: Counter[str] = Counter()

    @property
    def num_admitted(self) -> int:
        """Groups ever admitted, which is the position in the data set of the next one."""
        return self._num_admitted

    @property
    def num_trained(self) -> int:
        """Groups that were trained on."""
        return self._num_trained

    @property
    def num_dropped(self) -> dict[str, int]:
        """Dropped groups by reason."""
        return dict(self._dropped)

    @property
    def num_live(self) -> int:
        """Groups in flight or buffered."""
        return len(self._live)

    @property
    def room(self) -> int:
        """How many groups may be admitted now."""
        return max(0, self.max_live - len(self._live))

    def num_in_flight(self, version: int) -> int:
        """Live groups that are not buffered and whose oldest token is of ``version`` or, for all that is known now, may
        be."""
        return self._in_flight[version]

    def count(self, state: GroupState) -> int:
        """Number of groups in ``state``; for DROPPED, of all reasons."""
        if state is GroupState.TRAINED:
            return self._num_trained
        if state is GroupState.DROPPED:
            return self._dropped.total()
        return sum(record.state is state for record in self._live.values())

    def live(self) -> tuple[GroupRecord, ...]:
        """All live groups in the order of the data set."""
        return tuple(self._live.values())

    def get(self, group_id: str) -> GroupRecord:
        """The record of a live group.

        Raises:
            IllegalTransitionError: there is no such live group.
        """
        if group_id not in self._live:
            raise IllegalTransitionError(
                f"prompt group {group_id} is not live: never admitted, or already trained or dropped"
            )
        return self._live[group_id]

    def admit(self, group_id: str, *, position: int, current_version: int, time_s: float) -> GroupRecord:
        """Take in the next prompt group of the data set.

        Raises:
            IllegalTransitionError: there is no room, or the group is not the next one.
        """
        if not self.room:
            raise IllegalTransitionError(f"prompt group {group_id}: no room, {len(self._live)} groups are live")
        if position != self._num_admitted or group_id in self._live:
            raise IllegalTransitionError(
                f"prompt group {group_id} at position {position} cannot be admitted: "
                f"the next position is {self._num_admitted}"
            )
        record = GroupRecord(
            id=group_id,
            position=position,
            state=GroupState.PENDING,
            oldest_version=current_version,
            attempt=0,
            changed_s=time_s,
        )
        self._live[group_id] = record
        self._in_flight[current_version] += 1
        self._num_admitted += 1
        return record

    def start(self, group_id: str, *, version: int, time_s: float) -> None:
        """pending → running: a replica with weights of ``version`` has it."""
        record = self._move(group_id, GroupState.RUNNING, time_s)
        assert version >= record.oldest_version, f"{group_id} needs weights {record.oldest_version}, got {version}"
        if not record.attempt:
            self._in_flight[record.oldest_version] -= 1
            self._in_flight[version] += 1
            self._live[group_id] = replace(record, oldest_version=version)

    def requeue(self, group_id: str, *, time_s: float) -> None:
        """running → pending: its replica was lost or left. Counts one more attempt."""
        record = self._move(group_id, GroupState.PENDING, time_s)
        self._live[group_id] = replace(record, attempt=record.attempt + 1)

    def score(self, group_id: str, *, time_s: float) -> None:
        """running → scored."""
        self._move(group_id, GroupState.SCORED, time_s)

    def buffer(self, group_id: str, *, time_s: float) -> None:
        """scored → buffered."""
        self._move(group_id, GroupState.BUFFERED, time_s)

    def train(self, group_id: str, *, time_s: float) -> None:
        """buffered → trained: its step is done and will not be rolled back."""
        self._move(group_id, GroupState.TRAINED, time_s)
        self._num_trained += 1

    def drop(self, group_id: str, *, reason: str, time_s: float) -> None:
        """Any live state → dropped, counted under ``reason``."""
        self._move(group_id, GroupState.DROPPED, time_s)
        self._dropped[reason] += 1

    def _move(self, group_id: str, to: GroupState, time_s: float) -> GroupRecord:
        record = self.get(group_id)
        if to not in LEGAL_MOVES[record.state]:
            raise IllegalTransitionError(f"prompt group {group_id} cannot move from {record.state} to {to}")
        moved = replace(record, state=to, changed_s=time_s)
        if record.state in IN_FLIGHT_STATES and to not in IN_FLIGHT_STATES:
            self._in_flight[record.oldest_version] -= 1
            if not self._in_flight[record.oldest_version]:
                del self._in_flight[record.oldest_version]
        if to in LIVE_STATES:
            self._live[group_id] = moved
        else:
            del self._live[group_id]
        return moved

    def snapshot(self) -> dict[str, Any]:
        """The ledger as plain data for a checkpoint (JSON): counts, and the live groups in order."""
        return {
            "num_admitted": self._num_admitted,
            "num_trained": self._num_trained,
            "num_dropped": dict(self._dropped),
            "live": [[record.id, record.position, record.attempt] for record in self._live.values()],
        }

    def restore(self, snapshot: Mapping[str, Any], *, current_version: int, time_s: float) -> None:
        """Become the ledger that ``snapshot`` was taken of, with every live group pending again.

        What was generated is not in the snapshot, so live groups start over (attempt + 1) with the weights of
        ``current_version``. Groups that were trained or dropped lie before ``num_admitted`` and never come back.
        """
        self._num_admitted = snapshot["num_admitted"]
        self._num_trained = snapshot["num_trained"]
        self._dropped = Counter(snapshot["num_dropped"])
        self._live = {
            group_id: GroupRecord(
                id=group_id,
                position=position,
                state=GroupState.PENDING,
                oldest_version=current_version,
                attempt=attempt + 1,
                changed_s=time_s,
            )
            for group_id, position, attempt in snapshot["live"]
        }
        self._in_flight = Counter({current_version: len(self._live)})
        self.check_integrity()

    def check_integrity(self) -> None:
        """Assert what always holds: admitted = trained + dropped + live (I1), live groups are known, in order."""
        ended = self._num_trained + self._dropped.total()
        assert self._num_admitted == ended + len(self._live), (
            f"{self._num_admitted} groups admitted, but {ended} ended and {len(self._live)} are live"
        )
        positions = [record.position for record in self._live.values()]
        assert positions == sorted(set(positions)), f"live groups out of order: {positions}"
        assert not positions or positions[-1] < self._num_admitted
        in_flight = Counter(each.oldest_version for each in self._live.values() if each.state in IN_FLIGHT_STATES)
        assert in_flight == self._in_flight, f"{dict(self._in_flight)} are told to be in flight, {dict(in_flight)} are"
        assert all(record.id == key and record.state in LIVE_STATES for key, record in self._live.items())
