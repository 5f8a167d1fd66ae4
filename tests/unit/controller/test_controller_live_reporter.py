"""What ``live.json`` says of a run, as the controller reads it from its parts."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from simulated_run import make_config, simulate

from rlserve.controller.live_reporter import INTERVAL_S, NUM_READINGS, WindowRate
from rlserve.manager.config import StaticConfig
from rlserve.tracking.run_folder import RunFolder


def test_a_rate_is_over_the_last_readings() -> None:
    rate = WindowRate()
    assert rate.update(1.0, 100) is None
    assert rate.update(1.0, 100) is None, "no time has gone by"
    assert rate.update(3.0, 200) == 50
    for second in range(4, 4 + NUM_READINGS):
        found = rate.update(float(second), 200 + 10 * (second - 3))
    assert found == pytest.approx(10), "what came before is forgotten"
    assert rate.update(20.0, 5) is None, "another engine on the slot counts from 0 again"
    assert rate.update(21.0, 8) == 3


def test_it_shows_every_gang_in_its_role(tmp_path: Path) -> None:
    config = make_config(num_steps=30, manager=StaticConfig())
    run = simulate(config, RunFolder.create(tmp_path, "simulated"), num_slots=4)
    shown = [state for state in run.tracker.shown if state.status == "training"]
    assert len(shown) > 10
    assert all(later.time_s - state.time_s == pytest.approx(INTERVAL_S) for state, later in pairwise(shown))
    last = shown[-1]
    assert [(gang.id, gang.type, gang.state) for gang in last.gangs] == [
        ("cpu/0", "cpu", "train"),
        ("cpu/1", "cpu", "train"),
        ("cpu/2", "cpu", "rollout"),
        ("cpu/3", "cpu", "rollout"),
    ]
    assert {gang.worker_state for state in shown for gang in state.gangs} == {None}, "all of them are well"
    replicas = [gang for state in shown for gang in state.gangs if gang.state == "rollout"]
    assert max(gang.num_running for gang in replicas) > 0
    assert max(gang.tokens_per_s or 0 for gang in replicas) > 0
    assert all(state.tokens_per_s >= 0 for state in shown)
    assert last.weight_version in (29, 30)
    assert {gang.tokens_per_s for gang in last.gangs if gang.state == "train"} == {None}
    starting = run.tracker.shown[0]
    assert {gang.state for gang in starting.gangs} == {"starting"}
