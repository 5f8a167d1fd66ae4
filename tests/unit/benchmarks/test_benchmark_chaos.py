"""What the chaos of a run is judged by: faults that are drawn, victims that may be hurt, files that are read."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from chaos_parts.base import PLANTED, Fault, Injury, Kind, State
from chaos_parts.plan import WEIGHTS, Sight, candidates, mixture, possible_moves, sight_of
from chaos_parts.run_watch import SlotView
from chaos_parts.summary import checks_of, rows_of, table, undisturbed_recoveries_s
from chaos_parts.verdict import Verdict, cost_error, judge, num_illegal_moves, num_versions_back, same_training

from rlserve.tracking.cost.replay import replay

FAULTLESS = Verdict(
    num_lost=0,
    num_trained_twice=0,
    num_too_stale=0,
    num_without_version=0,
    num_versions_back=0,
    num_illegal=0,
    cost_error=0.0,
    max_staleness=1,
    held_out_after=0.95,
)


def kill(state: State) -> Fault:
    return Fault(kind=Kind.KILL, state=state)


def sight(hurt: tuple[str, ...] = (), **states: str) -> Sight:
    slots = {
        slot_id: SlotView(state=state, role="train" if "train" in state else "rollout", version=3)
        for slot_id, state in states.items()
    }
    live: dict[str, Any] = {
        "status": "training",
        "trainer_waiting": False,
        "gangs": [{"id": "a", "num_running": 0}, {"id": "b", "num_running": 7}, {"id": "t", "num_running": None}],
    }
    return sight_of(slots, live, step=5, published=5, hurt=hurt)


def test_the_same_seed_gives_the_same_faults_and_each_kind_comes_early() -> None:
    first, again, other = (list(itertools.islice(mixture(seed), 300)) for seed in (1, 1, 2))
    assert first == again != other
    assert set(first[: len(WEIGHTS)]) == set(WEIGHTS)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (State.IDLE, ["a"]),
        (State.GENERATING, ["b"]),
        (State.SYNC, ["a", "b"]),
        (State.STEP, ["t", "u"]),
        (State.MOVE, []),
        (State.ANY, ["a", "b", "t", "u"]),
    ],
)
def test_victims_are_in_the_state_that_is_wanted(state: State, expected: list[str]) -> None:
    assert candidates(kill(state), sight(a="rollout", b="rollout", t="train", u="train")) == expected


def test_whoever_holds_the_state_alone_is_not_hurt() -> None:
    assert candidates(kill(State.STEP), sight(a="rollout", t="train")) == []
    back = sight(("u",), a="rollout", t="train", u="joining_train", v="train")
    assert candidates(kill(State.STEP), back) == [], "the second holder may be the one that is just coming back"
    assert candidates(kill(State.JOINING), back) == ["u"]


def test_the_last_replica_may_die_but_not_be_stopped() -> None:
    alone = sight(b="rollout", t="train", u="train")
    assert candidates(kill(State.GENERATING), alone) == ["b"]
    assert candidates(Fault(kind=Kind.STOP, state=State.GENERATING), alone) == []


def test_only_replicas_can_be_told_to_do_something_to_themselves() -> None:
    views = sight(a="rollout", b="rollout", t="train", u="train")
    assert all(candidates(Fault(kind=kind), views) == ["a", "b"] for kind in PLANTED)


def test_gangs_whose_role_another_has_may_be_moved() -> None:
    assert possible_moves(sight(a="rollout", b="rollout", t="train")) == [("a", "train"), ("b", "train")]
    assert possible_moves(sight(("a",), a="rollout", b="rollout", t="train")) == []


def hurt(fault: Fault, *, found_s: float | None, back_s: float | None, num_tokens: int = 0) -> Injury:
    return Injury(
        fault=fault, slot_id="a", process_id=1, done_s=10.0, found_s=found_s, back_s=back_s, num_lost_tokens=num_tokens
    )


def test_times_are_told_by_kind_and_judged() -> None:
    injuries = [
        hurt(kill(State.IDLE), found_s=10.5, back_s=12.5),
        hurt(kill(State.IDLE), found_s=12.0, back_s=None, num_tokens=40),
        hurt(Fault(kind=Kind.STOP), found_s=20.0, back_s=24.0),
        hurt(Fault(kind=Kind.SLOW), found_s=None, back_s=None),
        hurt(Fault(kind=Kind.WRONG_WEIGHTS), found_s=10.4, back_s=10.5),
        hurt(Fault(kind=Kind.WRONG_REPLICA), found_s=None, back_s=None),
    ]
    rows = {row.name: row for row in rows_of(injuries)}
    assert rows["kill, idle"].detection_s == (1.25, 2.0)
    assert rows["kill, idle"].recovery_s == (2.0, 2.0)
    assert rows["kill, idle"].lost_tokens == (20, 40)
    assert rows["slow"].detection_s is rows["slow"].lost_tokens is None
    assert "kill, idle" in "\n".join(table(list(rows.values())))
    found = checks_of(injuries, [FAULTLESS], num_done=9, num_wanted=10, num_left=0, num_failed=1, least_score=0.9)
    missed = [check.name for check in found if not check.met]
    assert missed == [
        "moves and faults",
        "runs that failed",
        "wrong replicas that no canary found",
        "kill: found, longest, s",
    ]
    recovered = next(check.value for check in found if check.name == "back in service, longest, s")
    assert recovered == 4.0, "weights that were taken anew are no new worker"


def test_a_way_back_does_not_count_the_time_in_which_another_loss_is_not_known() -> None:
    def lost(kind: Kind, done_s: float, found_s: float | None, back_s: float | None) -> Injury:
        return Injury(fault=Fault(kind=kind), slot_id="a", process_id=1, done_s=done_s, found_s=found_s, back_s=back_s)

    injuries = [
        lost(Kind.KILL, 10.0, 10.0, 30.0),
        lost(Kind.STOP, 12.0, 22.0, 26.0),
        lost(Kind.STOP, 15.0, 25.0, 28.0),
        lost(Kind.SLOW, 26.0, None, None),
        lost(Kind.KILL, 100.0, 101.0, None),
    ]
    # Of the first 20 s, 12 to 25 are those of the two that were stopped; the second's way back has 3 of the third's.
    assert undisturbed_recoveries_s(injuries) == [7.0, 1.0, 3.0]
    found = {
        check.name: check.value
        for check in checks_of(
            injuries, [FAULTLESS], num_done=5, num_wanted=5, num_left=0, num_failed=0, least_score=0.9
        )
    }
    name = "back in service, less the time in which another lost worker was not found yet, longest, s"
    assert (found["back in service, longest, s"], found[name]) == (20.0, 7.0)


def run_folder(path: Path, groups: list[list[str]], versions: list[list[int]]) -> Path:
    path.mkdir()
    (path / "config.yaml").write_text("num_steps: 2\nrollout: {max_staleness: 1}\n")
    lines = [
        {"step": step, "group_ids": ids, "oldest_versions": oldest}
        for step, (ids, oldest) in enumerate(zip(groups, versions, strict=True), start=1)
    ]
    (path / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "events.jsonl").write_text("")
    summary = {"groups_admitted": 5, "groups_trained": 4, "groups_dropped": {"x": 1}, "held_out_after": 0.95}
    (path / "summary.json").write_text(json.dumps(summary))
    return path


def test_a_run_that_lost_nothing_has_no_faults(tmp_path: Path) -> None:
    assert judge(run_folder(tmp_path / "run", [["a", "b"], ["c", "d"]], [[0, 0], [0, 1]])) == FAULTLESS


def test_what_is_wrong_is_found(tmp_path: Path) -> None:
    found = judge(run_folder(tmp_path / "run", [["a", "b"], ["a"]], [[0, -1], [0]]))
    assert (found.num_lost, found.num_trained_twice, found.num_without_version) == (1, 1, 1)
    found = judge(run_folder(tmp_path / "short", [["a", "b", "c", "d"]], [[0, 0, 0, 0]]))
    assert found.num_lost == 1, "a step"
    (tmp_path / "short" / "config.yaml").write_text("num_steps: 1\nrollout: {max_staleness: -1}\n")
    assert judge(tmp_path / "short").num_too_stale == 4


def weights(version: int) -> dict[str, Any]:
    return {"event": "weights", "slot_id": "a", "version": version}


def test_weights_may_go_back_with_a_new_process_alone() -> None:
    worker = {"event": "worker", "slot_id": "a"}
    assert num_versions_back([weights(1), weights(2), worker, weights(1)]) == 0
    assert num_versions_back([weights(2), weights(1)]) == 1


def test_illegal_changes_of_a_worker_are_counted() -> None:
    def history(*states: str) -> list[dict[str, Any]]:
        return [{"event": "worker_state", "slot_id": "a", "state": state} for state in states]

    assert num_illegal_moves(history("restarting", "stale", "healthy", "dead", "restarting")) == 0
    assert num_illegal_moves(history("stale")) == 1
    assert num_illegal_moves(history("restarting", "healthy")) == 1
    assert num_illegal_moves([*history("restarting", "stale"), {"event": "run"}, *history("restarting")]) == 0


def test_training_is_the_same_where_groups_and_rewards_are() -> None:
    step = {"step": 1, "group_ids": ["a"], "rewards": [[1.0]], "attempts": [0]}
    assert same_training([step], [{**step, "attempts": [1]}])
    assert not same_training([step], [{**step, "rewards": [[0.0]]}])
    assert not same_training([step], [])


def test_costs_add_up_to_the_time_of_slots_that_came_left_and_were_taken_up_again() -> None:
    def slot(time_s: float, slot_id: str, owner: str) -> dict[str, object]:
        names = {"slot_id": slot_id, "gang_id": slot_id, "slot_type": "cpu", "state": owner}
        return {"event": "slot", "time_s": time_s, "owner": owner, **names}

    events = [
        {"event": "run", "time_s": 2.0, "begin_s": 0.0, "resumed": False, "step": 0},
        slot(3.0, "a", "train"),
        {"event": "worker", "time_s": 4.0, "slot_id": "a", "process_id": 1, "host": "here"},
        slot(6.0, "b", "rollout"),
        slot(9.0, "b", "gone"),
        {"event": "run", "time_s": 12.0, "begin_s": 9.0, "resumed": True, "step": 0},
        slot(13.0, "a", "train"),
        {"event": "stage", "time_s": 20.0, "stage": "ending"},
    ]
    assert cost_error(events) < 1e-12
    assert replay(events).statement(0.0).gpu_hours == pytest.approx((9.0 + 3.0 + 11.0) / 3600)
