"""What the run costs, while it goes on: feeds the ledger with what happens.

::

    trained, finished, held-out, streamed ──► TokensEvent ─┐
    tracking.Event, whoever did it ────────────────────────┴─► ledger ──► metrics, summary, BudgetEvent

The ledger begins with what the run's files have, so a run that is taken up again counts on from all that happened, also
after its checkpoint.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from rlserve.controller.context import RunContext
from rlserve.controller.events import GroupFinished, GroupsTrained, HeldOutAnswered, TokensStreamed
from rlserve.errors import UserError
from rlserve.tracking.cost.budget import Spent, Unit, spent_of
from rlserve.tracking.cost.config import BudgetConfig
from rlserve.tracking.cost.figures import CostFigures, Scores
from rlserve.tracking.cost.prices import Prices
from rlserve.tracking.cost.replay import replay
from rlserve.tracking.events import BudgetEvent, Event, StageEvent, StepEvent, TokensEvent
from rlserve.tracking.jsonl import Line

logger = logging.getLogger(__name__)

_NO_SCORES = Scores()
_CHECK_S = 1.0
"""Between two looks at the budget."""


class CostKeeper:
    """Keeps the ledger of the run."""

    def __init__(self, run: RunContext, so_far: Iterable[Line], prices: Prices | None, budget: BudgetConfig) -> None:
        """``so_far`` are the events of the run that are on disk already.

        Raises:
            UserError: the budget is spent already, and the run may not go on then.
        """
        self._run = run
        self._ledger = replay(so_far)
        self._prices = prices
        self._budget = budget
        self._passed = set[Unit]()
        """What has been told."""
        self._checked_s = 0.0
        if budget.on_passed == "stop" and (passed := self._newly_passed()):
            raise UserError(f"the run is over its budget: {passed[0]}; raise it to go on")
        self._num_trained = self._num_dropped = self._num_clients = 0
        """Tokens whose fate has not been told yet."""
        run.events.subscribe(GroupsTrained, self._note_trained)
        run.events.subscribe(GroupFinished, self._note_finished)
        run.events.subscribe(HeldOutAnswered, self._note_held_out)
        run.events.subscribe(TokensStreamed, self._note_streamed)
        # What is told because of a record is written before it, so it has the record's time.
        run.events.subscribe(StepEvent, lambda event: self._tell(event.step, event.time_s))
        run.events.subscribe(StageEvent, lambda event: self._tell(run.counters.num_steps, event.time_s))
        run.events.subscribe(Event, self._note)

    def metrics(self) -> Mapping[str, float]:
        """Until now."""
        figures = self._figures()
        shares = [spent.share for spent in spent_of(self._budget, figures.amount())]
        return {**figures.metrics(), **({"cost/budget_share": max(shares)} if shares else {})}

    def summary(self, *, held_out_after: float | None) -> CostFigures:
        """Of the whole run."""
        return self._figures(Scores(before=self._run.counters.held_out_before, after=held_out_after))

    def _figures(self, scores: Scores = _NO_SCORES) -> CostFigures:
        statement = self._ledger.statement(self._run.clock.now())
        return CostFigures(statement=statement, prices=self._prices, scores=scores)

    def _note(self, event: Event) -> None:
        self._ledger.note(event)
        now_s = self._run.clock.now()
        if now_s - self._checked_s >= _CHECK_S and not isinstance(event, BudgetEvent):
            self._checked_s = now_s
            self._check_budget(now_s)

    def _check_budget(self, now_s: float) -> None:
        stops = self._budget.on_passed == "stop"
        for spent in self._newly_passed():
            self._passed.add(spent.unit)
            logger.warning("%s%s", spent, ": the run saves and ends" if stops else "")
            self._run.events.emit(
                BudgetEvent(time_s=now_s, unit=spent.unit, spent=spent.spent, budget=spent.budget, stops=stops)
            )

    def _newly_passed(self) -> list[Spent]:
        if self._budget.gpu_hours is None and self._budget.money is None:
            return []
        found = spent_of(self._budget, self._figures().amount())
        return [spent for spent in found if spent.share > 1 and spent.unit not in self._passed]

    def _note_trained(self, event: GroupsTrained) -> None:
        self._num_trained += sum(group.num_generated_tokens for group in event.groups)

    def _note_finished(self, event: GroupFinished) -> None:
        if not event.kept:
            self._num_dropped += event.num_tokens

    def _note_held_out(self, event: HeldOutAnswered) -> None:
        self._tell(event.step, self._run.clock.now(), num_held_out=event.num_tokens)

    def _note_streamed(self, event: TokensStreamed) -> None:
        self._num_clients += event.num_tokens

    def _tell(self, step: int, time_s: float, *, num_held_out: int = 0) -> None:
        if not (self._num_trained or self._num_dropped or self._num_clients or num_held_out):
            return
        told = TokensEvent(
            time_s=time_s,
            step=step,
            num_trained=self._num_trained,
            num_dropped=self._num_dropped,
            num_held_out=num_held_out,
            num_clients=self._num_clients,
        )
        self._num_trained = self._num_dropped = self._num_clients = 0
        self._run.events.emit(told)
