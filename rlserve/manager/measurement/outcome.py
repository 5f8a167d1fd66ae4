"""What a move came to: the rate of training before and after it, over windows of steps that can be compared.

::

    steps:   … ├──── before ────┤ move ├ settling ├──── after ────┤
                                ▲ begin_s  ▲ end_s            ──► Outcome; also where the next move cuts it short

The first steps after a move live on groups that were finished before it, so they count for neither side: they are part
of what the move costs. Answers that become longer, or fewer groups that are kept, slow training down whatever the split
is; so the rate after is given at the load of before.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from rlserve.manager.measurement.readings import GroupDone, MoveDone, Reading, StepDone
from rlserve.manager.roles import Role

NUM_STEPS = 8
"""Of a window."""
MIN_STEPS = 2
"""Of a window that says anything."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A move and what it came to. Rates are prompt groups trained in a second."""

    gang_id: str
    to: Role
    begin_s: float
    duration_s: float
    trainer_pause_s: float
    rate_before: float
    rate_after: float
    """At the load of before."""
    load: float
    """Work for a trained group after the move, by that before: above 1, the load has grown."""
    cost: float
    """Prompt groups that were not trained from the decision until the window after, at the rate of before."""
    num_steps_before: int
    num_steps_after: int


@dataclass(frozen=True, kw_only=True)
class _Step:
    done: StepDone
    num_generated: int
    """Tokens of the groups that were finished during it."""
    num_kept: int

    @property
    def whole_s(self) -> float:
        """Without what no split changes: a held-out score, a checkpoint."""
        return self.done.wait_s + self.done.weights_s + self.done.work_s


@dataclass(kw_only=True)
class _Pending:
    move: MoveDone
    before: tuple[_Step, ...]
    settling: list[_Step]
    num_begun: int = 0
    """Steps that began to compute after the move."""
    after: list[_Step] = field(default_factory=list)


class OutcomeMeter:
    """Judges each move as soon as it can. Takes the readings that a meter takes; memory is bounded."""

    def __init__(self, *, num_settling: int) -> None:
        """``num_settling`` steps after a move are not counted: as many as are finished ahead at most."""
        self._num_settling = num_settling
        self._steps: deque[_Step] = deque(maxlen=2 * NUM_STEPS)
        """Since the last move had settled; some may turn out to have ended during the next."""
        self._pending: _Pending | None = None
        self._num_generated = 0
        self._num_kept = 0

    def note(self, reading: Reading) -> Outcome | None:
        """Take a reading in; what a move came to, if that is known with it."""
        match reading:
            case GroupDone():
                self._num_generated += reading.num_tokens
                self._num_kept += reading.kept
            case MoveDone():
                outcome = self.finish()
                before = [step for step in self._steps if step.done.end_s <= reading.begin_s]
                self._pending = _Pending(
                    move=reading,
                    before=tuple(before[-NUM_STEPS:]),
                    settling=[step for step in self._steps if step.done.end_s > reading.begin_s],
                )
                self._steps.clear()
                return outcome
            case StepDone():
                return self._note_step(reading)
            case _:
                pass
        return None

    def finish(self) -> Outcome | None:
        """What the last move came to, by the steps that there are; None where they are too few, or it is known."""
        pending, self._pending = self._pending, None
        if pending is None or min(len(pending.before), len(pending.after)) < MIN_STEPS:
            return None
        return _outcome(pending)

    def _note_step(self, done: StepDone) -> Outcome | None:
        step = _Step(done=done, num_generated=self._num_generated, num_kept=self._num_kept)
        self._num_generated = self._num_kept = 0
        pending = self._pending
        if pending is None:
            self._steps.append(step)
            return None
        pending.num_begun += done.end_s - done.work_s >= pending.move.end_s
        if pending.num_begun <= self._num_settling:
            pending.settling.append(step)
            return None
        pending.after.append(step)
        self._steps.append(step)
        return self.finish() if len(pending.after) == NUM_STEPS else None


def _outcome(pending: _Pending) -> Outcome:
    move, before, after = pending.move, pending.before, pending.after
    load, rate_before = _load(before, after), _rate(before)
    settling_s = move.trainer_pause_s + sum(step.whole_s for step in pending.settling)
    return Outcome(
        gang_id=move.gang_id,
        to=move.to,
        begin_s=move.begin_s,
        duration_s=move.end_s - move.begin_s,
        trainer_pause_s=move.trainer_pause_s,
        rate_before=rate_before,
        rate_after=_rate(after) * load,
        load=load,
        cost=rate_before * settling_s - sum(step.done.num_groups for step in pending.settling),
        num_steps_before=len(before),
        num_steps_after=len(after),
    )


def _rate(steps: tuple[_Step, ...] | list[_Step]) -> float:
    return sum(step.done.num_groups for step in steps) / sum(step.whole_s for step in steps)


def _load(before: tuple[_Step, ...], after: list[_Step]) -> float:
    """Work of a trained group after, by that before: its tokens where training is the slower side, the tokens that had
    to be generated for it where it waits for rollout; in between by the share of waiting."""
    trained = _tokens_per_group(after) / _tokens_per_group(before)
    generated_before, generated_after = _generated_per_kept(before), _generated_per_kept(after)
    if generated_before is None or generated_after is None:
        return trained
    wait_share = sum(step.done.wait_s for step in after) / sum(step.whole_s for step in after)
    return wait_share * generated_after / generated_before + (1.0 - wait_share) * trained


def _tokens_per_group(steps: tuple[_Step, ...] | list[_Step]) -> float:
    return sum(step.done.num_tokens for step in steps) / sum(step.done.num_groups for step in steps)


def _generated_per_kept(steps: tuple[_Step, ...] | list[_Step]) -> float | None:
    num_generated, num_kept = sum(step.num_generated for step in steps), sum(step.num_kept for step in steps)
    return num_generated / num_kept if num_generated and num_kept else None
