"""What the controller tells the ledger of costs, and when it says that a budget is passed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest
from controller_fakes import FakeClock, recorded, run_context

from rlserve.controller.context import RunContext
from rlserve.controller.cost_keeper import CostKeeper
from rlserve.controller.events import GroupFinished, GroupsTrained, HeldOutAnswered, TokensStreamed
from rlserve.engine.requests.delta import SampleDelta
from rlserve.engine.requests.generated_tokens import GeneratedTokens
from rlserve.errors import UserError
from rlserve.rollout.requests.base import RequestId, RequestKind
from rlserve.tracking.cost.config import BudgetConfig
from rlserve.tracking.cost.prices import Prices
from rlserve.tracking.events import BudgetEvent, RunEvent, SlotEvent, StageEvent, StepEvent, TokensEvent

PRICES = Prices(currency="EUR", date="2026-11-01", per_hour={"H100": 2.0})

NO_BUDGET = BudgetConfig()


class Group:
    """A group of so many tokens."""

    def __init__(self, num_generated_tokens: int) -> None:
        self.num_generated_tokens = num_generated_tokens


def with_keeper(
    scenario: Callable[[RunContext, CostKeeper, FakeClock], None],
    budget: BudgetConfig = NO_BUDGET,
    so_far: Any = (),
) -> None:
    async def run() -> None:
        async with asyncio.TaskGroup() as tasks:
            clock = FakeClock(0.0)
            context = run_context(tasks, clock)
            keeper = CostKeeper(context, so_far, PRICES, budget)
            context.events.emit(RunEvent(time_s=0.0, begin_s=0.0, resumed=False, step=0))
            context.events.emit(slot(0.0, "train"))
            scenario(context, keeper, clock)

    asyncio.run(run())


def slot(time_s: float, owner: Any) -> SlotEvent:
    return SlotEvent(time_s=time_s, slot_id="H100/0", slot_type="H100", gang_id="H100/0", owner=owner, state=owner)


def step(number: int, time_s: float) -> StepEvent:
    return StepEvent(
        time_s=time_s,
        step=number,
        begin_s=time_s - 2.0,
        work_begin_s=time_s - 1.0,
        work_end_s=time_s,
        slot_ids=("H100/0",),
        num_groups=1,
        num_tokens=100,
    )


def streamed(num_tokens: int) -> TokensStreamed:
    zeros = [0.0] * num_tokens
    tokens = GeneratedTokens.of([1] * num_tokens, zeros, zeros, [0] * num_tokens)
    request_id = RequestId(kind=RequestKind.CLIENT, name="0")
    return TokensStreamed(id=request_id, samples=(SampleDelta(index=0, start=0, tokens=tokens),))


def test_what_became_of_tokens_is_told_before_the_step_that_trained_on_them() -> None:
    def scenario(run: RunContext, keeper: CostKeeper, clock: FakeClock) -> None:
        told, order = recorded(run.events, TokensEvent), list[str]()
        run.events.subscribe(TokensEvent, lambda event: order.append("tokens"))
        run.events.subscribe(StepEvent, lambda event: order.append("step"))
        run.events.emit(GroupFinished(kept=True, num_tokens=50))
        run.events.emit(GroupFinished(kept=False, num_tokens=7))
        run.events.emit(streamed(5))
        run.events.emit(GroupsTrained(step=1, groups=cast(Any, [Group(30), Group(20)])))
        run.events.emit(step(1, 10.0))
        run.events.emit(HeldOutAnswered(step=1, answers=[], num_tokens=9))
        run.events.emit(streamed(3))
        run.events.emit(StageEvent(time_s=10.0, stage="ending"))
        found = [(each.step, each.num_trained, each.num_dropped, each.num_held_out, each.num_clients) for each in told]
        assert found == [(1, 50, 7, 0, 5), (1, 0, 0, 9, 0), (0, 0, 0, 0, 3)]
        assert order == ["tokens", "step", "tokens", "tokens"]

    with_keeper(scenario)


def test_metrics_and_summary_are_of_now() -> None:
    def scenario(run: RunContext, keeper: CostKeeper, clock: FakeClock) -> None:
        clock.now_s = 3600.0
        run.events.emit(step(1, 3600.0))
        metrics = keeper.metrics()
        assert (metrics["cost/gpu_hours"], metrics["cost/money"]) == pytest.approx((1.0, 2.0))
        assert "cost/budget_share" not in metrics
        run.counters.held_out_before = 0.5
        assert keeper.summary(held_out_after=0.75).to_dict()["per"]["held_out_point"] == {
            "gpu_hours": pytest.approx(0.04),
            "money": pytest.approx(0.08),
        }

    with_keeper(scenario)


@pytest.mark.parametrize("stops", [False, True])
def test_a_budget_that_is_passed_is_told_once(stops: bool) -> None:
    def scenario(run: RunContext, keeper: CostKeeper, clock: FakeClock) -> None:
        passed = recorded(run.events, BudgetEvent)
        clock.now_s = 1800.0
        run.events.emit(step(1, 1800.0))
        assert not passed
        assert keeper.metrics()["cost/budget_share"] == pytest.approx(0.5)
        for number in (2, 3):
            clock.now_s += 2000.0
            run.events.emit(step(number, clock.now_s))
        assert [(each.unit, each.budget, each.stops) for each in passed] == [("money", 2.0, stops)]
        assert passed[0].spent == pytest.approx(3800 / 3600 * 2)

    with_keeper(scenario, BudgetConfig(gpu_hours=9.0, money=2.0, on_passed="stop" if stops else "warn"))


def test_a_run_that_would_stop_at_once_is_not_taken_up() -> None:
    so_far = [
        {"event": "run", "time_s": 0.0, "begin_s": 0.0, "resumed": False, "step": 0},
        {"event": "slot", **vars(slot(0.0, "train"))},
        {"event": "end", "time_s": 7200.0, "exit_code": 143, "error": None},
    ]
    budget = BudgetConfig(gpu_hours=1.0, on_passed="stop")
    with pytest.raises(ExceptionGroup) as caught:
        with_keeper(lambda *_: None, budget, so_far)
    assert caught.group_contains(UserError, match=r"over its budget: 2 is spent of cost.budget.gpu_hours=1; raise it")
    with_keeper(lambda *_: None, BudgetConfig(gpu_hours=1.0), so_far)
