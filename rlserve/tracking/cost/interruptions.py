"""What each interruption of a run cost in time: from its last record until it did a training step that it had not done.

::

    … step 13 │ killed    away: queue, machines    │ command    start │ step 11, 12, 13    again │ step 14
              └───────────────────────────────── time lost ────────────────────────────────────────────┘

Pure, from the run's events alone. Their times leave out what is between a stop and the next begin, so each begin says
what time it was (``RunEvent.begun_at_s``).
"""

from __future__ import annotations

import signal
from collections.abc import Iterable
from dataclasses import dataclass, replace

from rlserve.tracking.events import EndEvent, RunEvent, StepEvent
from rlserve.tracking.jsonl import Line

KILLED = "killed"
FINISHED = "finished"
_SIGNALLED = 128
"""Exit codes above are of a signal, by its number."""


@dataclass(frozen=True, kw_only=True)
class Interruption:
    """One, in seconds; ``start_s`` and ``again_s`` grow until the run is back."""

    step: int
    """The last training step that was done before."""
    ended_by: str
    """``SIGTERM``, ``failed``, or ``killed`` where the run could say nothing."""
    away_s: float
    """From the last record until the command that went on began: what the scheduler and the machines took."""
    start_s: float
    """From there until the first step was done."""
    again_s: float
    """From there until the first step was done that was new."""
    num_again: int
    """Steps that were done again."""
    is_over: bool
    """Whether a new step was done since; else another interruption came before, or it goes on."""

    @property
    def lost_s(self) -> float:
        """All of it."""
        return self.away_s + self.start_s + self.again_s


def find_interruptions(events: Iterable[Line]) -> tuple[Interruption, ...]:
    """Of a run, in their order. One that had finished, and was taken up for more steps, was not interrupted."""
    journal = _Journal()
    for event in events:
        match event["event"]:
            case RunEvent.kind:
                journal.begin(event)
            case EndEvent.kind:
                journal.end(event)
            case StepEvent.kind:
                journal.step(event)
        journal.last_s = max(journal.last_s, event["time_s"])
    return journal.found()


class _Journal:
    """What was read so far."""

    def __init__(self) -> None:
        self.last_s = 0.0
        """Of all records of this session, in the run's own time."""
        self._past: list[Interruption] = []
        self._open: Interruption | None = None
        self._begin: Line | None = None
        self._ended_by: str | None = None
        self._first_step_s: float | None = None
        """Of this session, when it was done."""
        self._last_step = 0
        """Ever done."""

    def found(self) -> tuple[Interruption, ...]:
        """As of the last record."""
        return tuple(self._past) if self._open is None else (*self._past, self._grown(self._open, self.last_s))

    def begin(self, event: Line) -> None:
        """A command begins the run, or goes on with it."""
        before = self._begin
        if self._open is not None:
            self._past.append(self._grown(self._open, self.last_s))
        self._open = None
        if before is not None and self._ended_by != FINISHED and self._is_dated(before) and self._is_dated(event):
            stopped_at_s = before["begun_at_s"] + self.last_s - before["begin_s"]
            self._open = Interruption(
                step=self._last_step,
                ended_by=self._ended_by or KILLED,
                away_s=max(event["begun_at_s"] - stopped_at_s, 0.0),
                start_s=0.0,
                again_s=0.0,
                num_again=0,
                is_over=False,
            )
        self._begin, self._ended_by, self._first_step_s, self.last_s = event, None, None, event["begin_s"]

    def end(self, event: Line) -> None:
        """The command ends on its own terms."""
        code = event["exit_code"]
        self._ended_by = FINISHED if code == 0 else _signal_name(code) or "failed"

    def step(self, event: Line) -> None:
        """A training step is done."""
        if self._first_step_s is None:
            self._first_step_s = event["time_s"]
        if self._open is not None:
            self._open = self._grown(self._open, event["time_s"])
            if event["step"] > self._last_step:
                self._past.append(replace(self._open, is_over=True))
                self._open = None
            else:
                self._open = replace(self._open, num_again=self._open.num_again + 1)
        self._last_step = max(self._last_step, event["step"])

    def _grown(self, interruption: Interruption, now_s: float) -> Interruption:
        assert self._begin is not None
        first_s = now_s if self._first_step_s is None else self._first_step_s
        return replace(interruption, start_s=first_s - self._begin["begin_s"], again_s=max(now_s - first_s, 0.0))

    @staticmethod
    def _is_dated(event: Line) -> bool:
        """Simulated and paced runs are not."""
        return event.get("begun_at_s") is not None


def _signal_name(exit_code: int) -> str | None:
    try:
        return signal.Signals(exit_code - _SIGNALLED).name
    except ValueError:
        return None
