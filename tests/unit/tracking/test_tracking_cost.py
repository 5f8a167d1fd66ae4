"""The ledger of what a run's time went into: each use by itself, and what always holds of their sum."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from cost_story import begin, end, ledger_of, seconds, slot, stage, step, stretch, worker
from hypothesis import given
from hypothesis import strategies as st

from rlserve.errors import DataError, UserError
from rlserve.tracking.cost.budget import check_priced
from rlserve.tracking.cost.config import BudgetConfig
from rlserve.tracking.cost.figures import Amount, CostFigures, Scores
from rlserve.tracking.cost.ledger import CostLedger
from rlserve.tracking.cost.prices import Prices, read_prices
from rlserve.tracking.cost.replay import replay
from rlserve.tracking.cost.uses import Use
from rlserve.tracking.events import Event, LostWorkEvent, TokensEvent, WeightEvent
from rlserve.tracking.share_event import ShareEvent

STARTED = [
    begin(),
    slot(5.0, "H100/0", "starting"),
    slot(5.0, "H200/0", "starting"),
    worker(9.0, "H100/0"),
    slot(9.0, "H100/0", "idle"),
    slot(9.0, "H100/0", "joining_train"),
    slot(10.0, "H100/0", "train"),
    slot(9.0, "H200/0", "idle"),
    slot(10.0, "H200/0", "joining_rollout"),
    slot(12.0, "H200/0", "rollout"),
    stage(12.0, "training"),
]
"""A trainer and a replica, both at work at 12 s."""


def tokens(time_s: float, number: int, **become: int) -> TokensEvent:
    return TokensEvent(time_s=time_s, step=number, **become)


def test_a_slot_is_counted_from_the_begin_of_the_command_and_starts_until_it_has_a_role() -> None:
    ledger = ledger_of(*STARTED)
    assert seconds(ledger.statement(12.0)) == {Use.STARTUP: 10 + 12, Use.IN_FLIGHT: 2}
    late = ledger_of(*STARTED, slot(20.0, "H100/1", "starting"), slot(23.0, "H100/1", "idle"))
    statement = late.statement(30.0)
    assert round(3600 * statement.hours_of(slot_type="H100"), 6) == 30 + 10
    assert seconds(statement, role="moving") == {Use.STARTUP: 10 + 12 + 10}


def test_on_a_shared_cluster_neither_the_wait_for_slots_nor_what_is_lent_is_the_runs() -> None:
    share = ShareEvent(
        time_s=4.0, slots={"H100": 1, "H200": 1}, num_lent=0, num_borrowed=2, num_owed=0, runs={"other": 3}
    )
    shared = [STARTED[0], share, *STARTED[1:], replace(share, time_s=12.5)]
    assert seconds(ledger_of(*shared).statement(13.0)) == {Use.STARTUP: 6 + 8, Use.IN_FLIGHT: 3 + 1}
    lent = ledger_of(*shared, slot(14.0, "H200/0", "idle"), slot(14.0, "H200/0", "gone"))
    back = slot(24.0, "H200/1", "starting")
    for event in (replace(share, time_s=15.0), back):
        lent.note(event)
    statement = lent.statement(26.0)
    assert round(3600 * statement.hours_of(slot_type="H200"), 6) == (14 - 4) + (26 - 24)
    seconds(statement)


def test_a_step_explains_the_time_of_its_trainers() -> None:
    ledger = ledger_of(
        *STARTED,
        step(1, 12.0, 20.0, 27.0, 28.5, "H100/0", weights_wait_s=1.0, change_wait_s=0.5, state_copy_s=1.25),
    )
    assert seconds(ledger.statement(28.5), role="train") == {
        Use.STARTUP: 2.0,  # it had its role before the run went on to training
        Use.WEIGHT_SYNC: 1.0 + 0.25,
        Use.SWITCHING: 0.5,
        Use.BUBBLE: 6.5,
        Use.TRAINING: 7.0,
        Use.CHECKPOINT: 1.25,
    }


def test_what_no_event_has_told_of_is_in_flight() -> None:
    found = seconds(ledger_of(*STARTED, step(1, 12.0, 13.0, 14.0, 15.0, "H100/0")).statement(18.0), role="train")
    assert found[Use.IN_FLIGHT] == 3.0


def test_a_replica_computes_takes_weights_and_waits() -> None:
    weights = WeightEvent(time_s=15.0, version=1, slot_id="H200/0", duration_s=2.0, pause_s=0.25)
    ledger = ledger_of(*STARTED, weights, stretch("H200/0", 12.0, 22.0, 6.0))
    found = seconds(ledger.statement(22.0), role="rollout")
    assert found == {Use.IN_FLIGHT: 6.0, Use.WEIGHT_SYNC: 0.25, Use.BUBBLE: 3.75}


def test_what_is_computed_again_is_no_token_s() -> None:
    told = replace(stretch("H200/0", 12.0, 22.0, 6.0), recompute_s=1.5)
    found = seconds(ledger_of(*STARTED, told).statement(22.0), role="rollout")
    assert found == {Use.IN_FLIGHT: 4.5, Use.RECOMPUTE: 1.5, Use.BUBBLE: 4.0}


def test_all_slots_of_a_gang_have_the_time_of_their_replica_and_its_tokens_count_once() -> None:
    gang = [slot(12.0, slot_id, "rollout", gang_id="H200/2-3") for slot_id in ("H200/2", "H200/3")]
    ledger = ledger_of(*STARTED, *gang, stretch("H200/2", 12.0, 22.0, 6.0, 100), tokens(22.0, 1, num_trained=100))
    assert ledger.statement(22.0).num_generated_tokens == 100
    assert seconds(ledger.statement(22.0), role="rollout")[Use.ROLLOUT] == 12.0


def test_tokens_take_their_time_to_what_became_of_them() -> None:
    ledger = ledger_of(
        *STARTED,
        stretch("H200/0", 12.0, 22.0, 10.0, 100),
        tokens(22.0, 1, num_trained=50, num_dropped=20, num_held_out=5, num_clients=5),
        LostWorkEvent(time_s=22.0, slot_id="H200/0", num_requests=1, num_tokens=10),
    )
    expected = {Use.ROLLOUT: 5.0, Use.DROPPED: 2.0, Use.EVALUATION: 0.5, Use.CLIENTS: 0.5, Use.LOST: 1.0}
    assert seconds(ledger.statement(22.0), role="rollout") == {**expected, Use.IN_FLIGHT: 1.0}
    ledger.note(slot(22.0, "H200/0", "leaving_rollout"))
    ledger.note(end(22.0))
    assert seconds(ledger.statement(22.0), role="rollout") == {**expected, Use.SURPLUS: 1.0}


def test_tokens_that_are_trained_before_the_replica_has_told_of_them_are_owed() -> None:
    ledger = ledger_of(*STARTED, tokens(14.0, 1, num_trained=60), stretch("H200/0", 12.0, 22.0, 10.0, 100))
    assert seconds(ledger.statement(22.0), role="rollout") == {Use.ROLLOUT: 6.0, Use.IN_FLIGHT: 4.0}


def test_training_that_stands_still_for_a_held_out_score_waits_for_it_and_so_does_an_idle_replica() -> None:
    ledger = ledger_of(
        *STARTED,
        step(1, 12.0, 13.0, 14.0, 14.0, "H100/0"),
        stretch("H200/0", 12.0, 14.0, 2.0),
        stage(14.0, "evaluating"),
        stretch("H200/0", 14.0, 19.0, 1.0),
        stage(19.0, "training"),
        step(2, 19.5, 20.0, 22.0, 22.0, "H100/0"),
    )
    assert seconds(ledger.statement(22.0), role="train")[Use.EVALUATION] == 5.0
    assert seconds(ledger.statement(22.0), role="train")[Use.IDLE] == 0.5
    assert seconds(ledger.statement(22.0), role="rollout")[Use.EVALUATION] == 4.0


def test_a_move_is_switching_and_a_trainer_that_leaves_before_its_step_is_told_of_has_trained() -> None:
    ledger = ledger_of(
        *STARTED,
        slot(20.0, "H100/0", "leaving_train"),
        step(1, 12.0, 13.0, 19.5, 20.5, "H100/0"),
        slot(22.0, "H100/0", "idle"),
        slot(23.0, "H100/0", "joining_rollout"),
        slot(25.0, "H100/0", "rollout"),
    )
    assert seconds(ledger.statement(25.0), role="train")[Use.TRAINING] == 6.5
    assert seconds(ledger.statement(25.0), role="moving") == {Use.STARTUP: 22.0, Use.SWITCHING: 4.0, Use.IDLE: 1.0}


def test_a_lost_trainer_loses_its_part_of_the_step_and_the_others_the_try_that_it_broke() -> None:
    ledger = ledger_of(
        *STARTED,
        slot(12.0, "H100/1", "train"),
        slot(16.0, "H100/1", "dead"),
        slot(16.0, "H100/1", "starting"),
        slot(18.0, "H100/1", "idle"),
        slot(18.0, "H100/1", "joining_train"),
        step(1, 12.0, 13.0, 21.0, 21.0, "H100/0", broken_s=4.0),
        slot(21.0, "H100/1", "train"),
    )
    found = seconds(ledger.statement(21.0), role="train")
    assert found == {Use.STARTUP: 2.0, Use.BUBBLE: 1.0, Use.LOST: 4.0 + 4.0, Use.TRAINING: 4.0}
    assert seconds(ledger.statement(21.0), role="moving")[Use.LOST] == 5.0


def test_a_run_that_is_taken_up_again_loses_what_came_after_its_checkpoint() -> None:
    killed = [
        *STARTED,
        stretch("H200/0", 12.0, 16.0, 4.0, 100),
        tokens(16.0, 1, num_trained=50),
        step(1, 12.0, 13.0, 16.0, 16.0, "H100/0"),
        tokens(20.0, 2, num_trained=25),
        step(2, 16.0, 17.0, 20.0, 20.0, "H100/0"),
        slot(22.0, "H100/1", "starting"),
    ]
    resumed = ledger_of(*killed, begin(22.0, resumed_step=1))
    statement = resumed.statement(22.0)
    assert seconds(statement, role="train") == {
        Use.STARTUP: 2.0,
        Use.BUBBLE: 2.0,
        Use.TRAINING: 3.0,
        Use.LOST: 3.0 + 2.0,  # the second step, and what was under way
    }
    assert seconds(statement, role="rollout") == {Use.ROLLOUT: 2.0, Use.LOST: 2.0 + 6.0}
    assert (statement.num_steps, statement.num_trained_tokens) == (1, 1000)
    resumed.note(slot(30.0, "H100/0", "starting"))
    assert seconds(resumed.statement(40.0), role="moving")[Use.STARTUP] == 22.0 + 18.0


def test_between_a_stop_and_the_next_begin_nothing_is_owned() -> None:
    stopped = [*STARTED, slot(20.0, "H100/0", "gone"), slot(20.0, "H200/0", "gone"), end(20.0, 143)]
    assert ledger_of(*stopped).statement(100.0).gpu_hours == pytest.approx(40 / 3600)
    assert ledger_of(*stopped, begin(20.0, resumed_step=0)).statement(100.0).gpu_hours == pytest.approx(40 / 3600)


STATES = ("starting", "idle", "joining_train", "train", "leaving_train", "rollout", "leaving_rollout", "dead", "gone")


@given(st.integers(0, 2**32), st.integers(1, 120))
def test_what_is_owned_is_the_sum_of_its_uses_whatever_happens(seed: int, number: int) -> None:
    chance = random.Random(seed)
    ledger, now_s = CostLedger(), 0.0
    owned_s, since_s = 0.0, dict[str, float]()
    up = False
    for _ in range(number):
        now_s += chance.choice((0.0, chance.random(), 10 * chance.random()))
        event = _anything(chance, now_s)
        ledger.note(event)
        match event.kind:
            case "slot":
                assert isinstance(event, type(slot(0.0, "a/0", "idle")))
                if event.owner == "gone":
                    owned_s += now_s - since_s.pop(event.slot_id, now_s)
                else:
                    since_s.setdefault(event.slot_id, now_s if up else 0.0)
            case "worker":
                up = True
        statement = ledger.statement(now_s)
        statement.check_integrity()
        expected_s = owned_s + sum(now_s - since for since in since_s.values())
        assert 3600 * statement.gpu_hours == pytest.approx(expected_s, abs=1e-6)
    ledger.close(now_s, has_finished=chance.random() < 0.5)
    closed = ledger.statement(now_s)
    closed.check_integrity()
    assert closed.hours_of(Use.IN_FLIGHT) == 0
    assert 3600 * closed.gpu_hours == pytest.approx(expected_s, abs=1e-6)


def _anything(chance: random.Random, now_s: float) -> Event:
    """An event that may come at this time, whether or not it fits to those before."""
    slot_id = f"H100/{chance.randrange(4)}"
    before_s = now_s * chance.random()
    match chance.randrange(9):
        case 0 | 1 | 2:
            return slot(now_s, slot_id, chance.choice(STATES), gang_id=f"gang/{int(slot_id[-1]) // 2}")
        case 3:
            return worker(now_s, slot_id)
        case 4:
            return stage(now_s, chance.choice(("starting", "evaluating", "training", "saving", "ending")))
        case 5:
            times_s = sorted(before_s + (now_s - before_s) * chance.random() for _ in range(3))
            more = {name: chance.random() for name in ("weights_wait_s", "change_wait_s", "broken_s", "state_copy_s")}
            members = chance.sample([f"H100/{number}" for number in range(4)], 2)
            return step(chance.randrange(1, 9), times_s[0], times_s[1], times_s[2], now_s, *members, **more)
        case 6:
            return stretch(slot_id, before_s, now_s, chance.random() * (now_s - before_s), chance.randrange(100))
        case 7:
            return tokens(now_s, chance.randrange(9), num_trained=chance.randrange(80), num_dropped=chance.randrange(9))
        case _:
            return WeightEvent(time_s=now_s, version=1, slot_id=slot_id, duration_s=1.0, pause_s=chance.random())


def test_another_version_of_the_files_is_refused() -> None:
    with pytest.raises(DataError, match="an event 'run' of the run has no begin_s"):
        replay([{"event": "run", "time_s": 0.0, "resumed": False, "step": 0}])


def figures(**per_hour: float) -> CostFigures:
    """Of an hour of two slots, of which the trainer trained for a quarter."""
    ledger = ledger_of(
        begin(),
        slot(0.0, "H100/0", "train"),
        slot(0.0, "H200/0", "rollout"),
        stage(0.0, "training"),
        stretch("H200/0", 0.0, 3600.0, 1800.0, 500),
        tokens(3600.0, 1, num_trained=500),
        step(1, 0.0, 2700.0, 3600.0, 3600.0, "H100/0"),
    )
    prices = Prices(currency="EUR", date="2026-11-01", per_hour=per_hour) if per_hour else None
    return CostFigures(statement=ledger.statement(3600.0), prices=prices, scores=Scores(before=0.25, after=0.5))


def test_amounts_are_in_gpu_hours_and_in_money_where_all_has_a_price() -> None:
    assert figures().amount() == Amount(gpu_hours=2.0, money=None)
    assert figures(H100=3.0, H200=4.0).amount() == Amount(gpu_hours=2.0, money=7.0)
    assert figures(H100=3.0, H200=4.0).amount(Use.TRAINING, Use.ROLLOUT) == Amount(gpu_hours=0.75, money=0.75 + 2.0)
    partly = figures(H100=3.0)
    assert partly.amount() == Amount(gpu_hours=2.0, money=None)
    assert partly.amount(role="train") == Amount(gpu_hours=1.0, money=3.0)
    assert partly.without_price == ("H200",)


def test_units() -> None:
    found = figures(H100=3.0, H200=4.0)
    assert found.per_step == Amount(gpu_hours=2.0, money=7.0)
    assert found.per_million_trained_tokens == Amount(gpu_hours=2000.0, money=7000.0)
    assert found.per_million_rollout_tokens == Amount(gpu_hours=2000.0, money=8000.0)
    assert found.per_point == Amount(gpu_hours=2 / 25, money=7 / 25)
    metrics = found.metrics()
    assert metrics["cost/useful_share"] == 0.375
    assert sum(value for name, value in metrics.items() if name.endswith("_share")) == pytest.approx(1.0)


def test_a_score_that_did_not_rise_has_no_price() -> None:
    flat = CostFigures(statement=figures().statement, prices=None, scores=Scores(before=0.5, after=0.5))
    assert flat.per_point is None


def test_a_budget_in_money_needs_a_price_for_every_type() -> None:
    prices = Prices(currency="EUR", date="2026-11-01", per_hour={"H100": 3.0})
    check_priced(BudgetConfig(money=5.0), prices, ["H100", "paced-H100"])
    check_priced(BudgetConfig(gpu_hours=5.0), None, ["H200"])
    with pytest.raises(UserError, match=r"cost.budget.money needs a price for H200, L4"):
        check_priced(BudgetConfig(money=5.0), prices, ["L4", "H100", "H200"])


GOOD = "currency: EUR\ndate: 2026-11-01\nper_hour:\n  H100: 3\n  H200: {on_demand: 4, spot_factor: 0.5}\n"


def test_prices_are_the_users(tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text(GOOD)
    prices = read_prices(path)
    assert (prices.currency, prices.date) == ("EUR", "2026-11-01")
    assert [prices.of(name) for name in ("H100", "H200", "paced-H100", "cpu")] == [3.0, 4.0, 3.0, None]
    assert [prices.of(name) for name in ("H200-spot", "paced-H200-spot", "H100-spot")] == [2.0, 2.0, None]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("a: [", "is not YAML"),
        (GOOD.replace("date: 2026-11-01\n", ""), "must have the keys currency, date, per_hour"),
        (GOOD.replace("2026-11-01", "soon"), "date a day"),
        (GOOD.replace("H100: 3", "H100: cheap"), "per_hour.H100 must be a number"),
        (GOOD.replace("H100: 3", "H100: -3"), "per_hour.H100 must be a number"),
        (GOOD.replace("spot_factor", "spot"), "per_hour.H200 must be a number"),
        ("currency: EUR\ndate: 2026-11-01\nper_hour: {}\n", "must give a price"),
    ],
)
def test_prices_of_another_form_are_refused(tmp_path: Path, content: str, complaint: str) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=complaint):
        read_prices(path)


def test_prices_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_prices(tmp_path / "none.yaml")
