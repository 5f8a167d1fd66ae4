"""What is done to a run, and what came of it. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What is done."""

    MOVE = "move"
    """A gang is asked to change its role."""
    KILL = "kill"
    """SIGKILL."""
    STOP = "stop"
    """SIGSTOP: the process lives, and does nothing any more."""
    SLOW = "slow"
    """SIGSTOP and SIGCONT in turn for some seconds, of which nothing may come."""
    NO_MEMORY = "no memory"
    """A replica's next step asks for more memory than there is."""
    WRONG_WEIGHTS = "wrong weights"
    """A replica's weights are changed where they lie, once."""
    WRONG_REPLICA = "wrong replica"
    """They are, whenever it has taken some: all that it computes is wrong."""
    DISK_FULL = "disk full"
    """Until a checkpoint has failed, the trainers cannot write any file but a tiny one."""
    KILL_SCORER = "kill scorer"
    KILL_CONTROLLER = "kill controller"
    """And resume, after a byte of the newest checkpoint was changed."""


class State(StrEnum):
    """What the victim is in the middle of, as the run's files tell it."""

    IDLE = "idle"
    """It rolls out, and has nothing to generate."""
    GENERATING = "generating"
    SYNC = "mid-sync"
    """A trainer that sends a version of the weights, or a replica that takes one."""
    MOVE = "mid-move"
    STEP = "mid-step"
    JOINING = "joining"
    """It was lost, and its new worker is on its way to the role."""
    ANY = "any"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing to do."""

    kind: Kind
    state: State = State.ANY

    @property
    def name(self) -> str:
        """Of its row in the table."""
        return str(self.kind) if self.state is State.ANY else f"{self.kind}, {self.state}"


PLANTED = (Kind.NO_MEMORY, Kind.WRONG_WEIGHTS, Kind.WRONG_REPLICA)
"""Faults that a replica does to itself when it is told to (``planting/``)."""
WRONG = (Kind.WRONG_WEIGHTS, Kind.WRONG_REPLICA)
"""Faults that only the canary finds."""
LOSES = (Kind.KILL, Kind.STOP, Kind.NO_MEMORY, Kind.WRONG_REPLICA)
"""Faults that cost a worker."""


@dataclass(kw_only=True)
class Injury:
    """A fault that was done. Times are seconds of this machine; None is what has not come."""

    fault: Fault
    slot_id: str
    """Or the process that it was done to, where that is no worker."""
    process_id: int
    done_s: float
    found_s: float | None = None
    """When the run knew that the worker is dead, or wrong."""
    back_s: float | None = None
    """When the slot's new worker could be relied on, or the old one had the right weights again."""
    num_lost_tokens: int = 0
    """Generated, and to be generated again."""

    @property
    def detection_s(self) -> float | None:
        """From the fault to its being found."""
        return None if self.found_s is None else self.found_s - self.done_s

    @property
    def recovery_s(self) -> float | None:
        """From there to a worker that can be relied on."""
        return None if self.found_s is None or self.back_s is None else self.back_s - self.found_s
