"""What the run costs, while it goes on: feeds the ledger with what happens.

::

    GroupsTrained, GroupFinished, HeldOutAnswered ──► TokensEvent ─┐
    tracking.Event, whoever did it ────────────────────────────────┴─► ledger ──► metrics, summary

The ledger begins with what the run's files have, so a run that is taken up again counts on from all that happened, also
after its checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rlserve.controller.context import RunContext
from rlserve.controller.events import GroupFinished, GroupsTrained, HeldOutAnswered
from rlserve.tracking.cost.figures import CostFigures, Scores
from rlserve.tracking.cost.prices import Prices
from rlserve.tracking.cost.replay import replay
from rlserve.tracking.events import Event, StageEvent, StepEvent, TokensEvent
from rlserve.tracking.jsonl import Line

_NO_SCORES = Scores()


class CostKeeper:
    """Keeps the ledger of the run."""

    def __init__(self, run: RunContext, so_far: Iterable[Line], prices: Prices | None) -> None:
        """``so_far`` are the events of the run that are on disk already."""
        self._run = run
        self._ledger = replay(so_far)
        self._prices = prices
        self._num_trained = self._num_dropped = 0
        """Tokens whose fate has not been told yet."""
        run.events.subscribe(GroupsTrained, self._note_trained)
        run.events.subscribe(GroupFinished, self._note_finished)
        run.events.subscribe(HeldOutAnswered, self._note_held_out)
        run.events.subscribe(StepEvent, lambda event: self._tell(event.step))
        run.events.subscribe(StageEvent, lambda _: self._tell(run.counters.num_steps))
        run.events.subscribe(Event, self._ledger.note)

    def metrics(self) -> Mapping[str, float]:
        """Until now."""
        return self._figures().metrics()

    def summary(self, *, held_out_after: float | None) -> CostFigures:
        """Of the whole run."""
        return self._figures(Scores(before=self._run.counters.held_out_before, after=held_out_after))

    def _figures(self, scores: Scores = _NO_SCORES) -> CostFigures:
        statement = self._ledger.statement(self._run.clock.now())
        return CostFigures(statement=statement, prices=self._prices, scores=scores)

    def _note_trained(self, event: GroupsTrained) -> None:
        self._num_trained += sum(group.num_generated_tokens for group in event.groups)

    def _note_finished(self, event: GroupFinished) -> None:
        if not event.kept:
            self._num_dropped += event.num_tokens

    def _note_held_out(self, event: HeldOutAnswered) -> None:
        self._tell(event.step, num_held_out=event.num_tokens)

    def _tell(self, step: int, *, num_held_out: int = 0) -> None:
        if not self._num_trained and not self._num_dropped and not num_held_out:
            return
        told = TokensEvent(
            time_s=self._run.clock.now(),
            step=step,
            num_trained=self._num_trained,
            num_dropped=self._num_dropped,
            num_held_out=num_held_out,
        )
        self._num_trained = self._num_dropped = 0
        self._run.events.emit(told)
