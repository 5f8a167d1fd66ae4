"""What is read of nodes that come and go, and what it is held to."""

from __future__ import annotations

from typing import Any

import pytest
from node_parts.joining import Joining, part_of
from node_parts.leaving import Leaving, Leavings
from node_parts.loss import Loss
from node_times import checks_of_joinings, checks_of_leavings, checks_of_loss

from rlserve.tracking.cost.interruptions import Interruption


@pytest.mark.parametrize(
    ("event", "part"),
    [
        ({"event": "slot", "slot_id": "cpu-n/0", "state": "starting"}, "noticed"),
        ({"event": "worker", "slot_id": "cpu-n/0"}, "worker up"),
        ({"event": "slot", "slot_id": "cpu-n/0", "state": "joining_train"}, "role"),
        ({"event": "slot", "slot_id": "cpu-n/0", "state": "idle"}, None),
        ({"event": "phase", "slot_id": "cpu-n/0", "phase": "weights_taken"}, "weights"),
        ({"event": "phase", "slot_id": "cpu-n/0", "phase": "first_token"}, "in use"),
        ({"event": "phase", "slot_id": "cpu-a/0", "phase": "first_token"}, None),
        ({"event": "step", "slot_ids": ["cpu-a/0", "cpu-n/0"]}, "in use"),
        ({"event": "step", "slot_ids": ["cpu-a/0"]}, None),
    ],
)
def test_the_parts_of_a_joining(event: dict[str, Any], part: str | None) -> None:
    assert part_of(event, "cpu-n/0") == part


def joining(way: str, role: str, useful_s: float) -> Joining:
    return Joining(way=way, role=role, start_s=4.0, useful_s=useful_s, parts_s={}, worker_processor_s=1.0)


def test_nodes_are_held_to_the_time_by_how_they_were_started_and_by_role() -> None:
    found = [joining("ray_node", "train", time_s) for time_s in (5.0, 7.0)]
    checks = checks_of_joinings([*found, joining("ray start", "rollout", 4.0), joining("ray start", "train", 18.0)])
    assert [(check.value, check.met) for check in checks] == [(4.0, True), (18.0, False), (6.0, True)]
    assert "ray start: from joined to useful (train)" in checks[1].name


def test_a_notice_may_cost_nothing() -> None:
    leavings = [Leaving(way="a signal", role="train", emptied_s=time_s) for time_s in (0.1, 5.5)]
    found = checks_of_leavings(Leavings(leavings=leavings, num_lost_tokens=1, num_moved=3, num_lost=0))
    assert [check.met for check in found] == [False, False, True]


def test_steps_done_again_are_bounded_by_the_checkpoints() -> None:
    again = Interruption(step=13, ended_by="killed", away_s=2.0, start_s=30.0, again_s=9.0, num_again=11, is_over=True)
    loss = Loss(what="the head", resumed_s=45.0, num_again=11, num_lost=0, num_trained_twice=0, interruption=again)
    assert [check.met for check in checks_of_loss(loss, save_every=10)] == [True, True, False, True, True]
