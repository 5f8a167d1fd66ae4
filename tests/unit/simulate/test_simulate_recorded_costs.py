"""Costs as a run recorded them."""

from __future__ import annotations

from typing import Any

import pytest

from rlserve.errors import DataError
from rlserve.simulate.costs.base import Costs
from rlserve.simulate.costs.recorded import RecordedCosts, recorded_costs


def slot(slot_id: str, slot_type: str) -> dict[str, Any]:
    return {"event": "slot", "slot_id": slot_id, "slot_type": slot_type}


def step(num_trainers: int, num_tokens: int, work_s: float) -> dict[str, Any]:
    slot_ids = [f"b/{number}" for number in range(num_trainers)]
    return {
        "event": "step",
        "slot_ids": slot_ids,
        "num_tokens": num_tokens,
        "work_begin_s": 5.0,
        "work_end_s": 5 + work_s,
    }


def stretch(batch: int, step_s: float, num_steps: int = 10) -> dict[str, Any]:
    busy_s = step_s * num_steps
    return {
        "event": "replica",
        "slot_id": "a/0",
        "busy_s": busy_s,
        "running_s": busy_s * batch,
        "num_tokens": batch * num_steps,
    }


SLOTS = [slot("a/0", "H100"), *(slot(f"b/{number}", "H200") for number in range(4))]
RUN = [
    *SLOTS,
    *(stretch(batch, 0.5 + 0.01 * batch) for batch in (2, 20, 60)),
    *(step(number, 1000, 1000 * (0.001 + 0.01 / number)) for number in (1, 2, 4)),
    {"event": "weights", "slot_id": None, "duration_s": 9.0, "pause_s": 0.0},
    {"event": "weights", "slot_id": "a/0", "duration_s": 1.5, "pause_s": 0.5},
    {"event": "outcome", "duration_s": 5.0, "trainer_pause_s": 2.0},
]


def taken(events: list[dict[str, Any]]) -> RecordedCosts:
    return recorded_costs(events, [{"weights/snapshot_s": 0.25}], block_size=16, num_blocks=100)


def test_every_cost_is_what_the_run_took() -> None:
    costs = taken(RUN)
    contract: Costs = costs
    assert contract.decode_step_s("H100", 40, 10_000) == pytest.approx(0.9)
    assert costs.decode_step_s("H200", 40, 0) == pytest.approx(0.9 * 3350 / 4800)  # never seen: by its bandwidth
    assert costs.train_step_s(["H100"] * 8, 2000) == pytest.approx(2000 * (0.001 + 0.01 / 8))
    assert (costs.weights_s("H100"), costs.swap_s("H100"), costs.snapshot_s("H100")) == (1.0, 0.5, 0.25)
    assert (costs.sleep_s("H100"), costs.wake_s("H100"), costs.reshard_s(["H100"], 1)) == (1.5, 1.5, 2.0)
    assert costs.num_kv_tokens("H100") == 1600


def test_one_size_of_trainers_is_taken_to_divide_evenly() -> None:
    costs = taken([*SLOTS, stretch(8, 0.5), step(2, 1000, 3.0)])
    assert costs.train_step_s(["H100"] * 4, 1000) == pytest.approx(1.5)
    assert costs.decode_step_s("H100", 80, 0) == pytest.approx(0.5)


def test_a_run_without_steps_is_refused() -> None:
    with pytest.raises(DataError, match="recorded no step"):
        taken([*SLOTS, stretch(8, 0.5)])
