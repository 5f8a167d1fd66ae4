"""What the benchmark of moves reads from the files of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import reallocate
from move_times import Gaps, Line, gaps_beyond_usual, num_tokens_made_twice, read_moves

from rlserve.tracking.move_requests import GangStatus


def slot(time_s: float, slot_id: str, state: str) -> Line:
    return {"event": "slot", "time_s": time_s, "slot_id": slot_id, "gang_id": slot_id, "state": state}


def phase(time_s: float, slot_id: str, name: str) -> Line:
    return {"event": "phase", "time_s": time_s, "slot_id": slot_id, "phase": name}


def decision(time_s: float, slot_id: str | None, action: str) -> Line:
    return {"time_s": time_s, "slot_id": slot_id, "action": action}


def step(begin_s: float, end_s: float, *slot_ids: str) -> Line:
    times = {"work_begin_s": begin_s, "work_end_s": end_s, "time_s": end_s + 0.5}
    return {"event": "step", **times, "slot_ids": list(slot_ids)}


def made(time_s: float, slot_id: str, pause_s: float) -> Line:
    return {"event": "move", "time_s": time_s, "slot_id": slot_id, "trainer_pause_s": pause_s}


def replica(slot_id: str, begin_s: float, end_s: float, gap_s: float, num_tokens: int = 9) -> Line:
    stretch = {"begin_s": begin_s, "time_s": end_s, "longest_gap_s": gap_s, "num_tokens": num_tokens}
    return {"event": "replica", "slot_id": slot_id, **stretch}


TO_ROLLOUT: list[Line] = [
    phase(12.0, "a", "step_boundary"),
    slot(12.0, "a", "leaving_train"),
    slot(12.25, "a", "idle"),
    phase(12.5, "a", "engine_formed"),
    phase(13.0, "a", "weights_taken"),
    slot(14.0, "a", "rollout"),
    made(14.0, "a", 0.25),
    phase(13.5, "a", "first_token"),
]
TO_TRAIN: list[Line] = [
    step(15.0, 21.0, "b"),
    slot(20.0, "a", "called_to_train"),
    slot(21.0, "a", "leaving_rollout"),
    phase(21.25, "a", "requests_moved"),
    phase(21.5, "a", "memory_released"),
    phase(22.25, "a", "trainer_built"),
    phase(22.5, "a", "group_met"),
    phase(22.75, "a", "step_boundary"),
    slot(23.25, "a", "train"),
    made(23.25, "a", 0.5),
    step(23.125, 27.125, "a", "b"),
    step(28.0, 29.0, "a", "b"),
]
DECISIONS: list[Line] = [
    decision(10.0, "a", "to_rollout"),
    decision(11.0, None, "hold"),
    decision(20.0, "a", "to_train"),
]


def test_the_parts_of_a_move_follow_on_each_other_from_the_decision_to_useful_work() -> None:
    there, back = read_moves(DECISIONS, [*TO_ROLLOUT, *TO_TRAIN])
    assert dict(there.parts_s) == {
        "step's end": 2.0,
        "leaving the trainers": 0.25,
        "engine's memory": 0.25,
        "weights": 0.5,
        "first token": 0.5,
    }
    assert (there.total_s, there.own_s, there.end_s, there.trainer_pause_s) == (3.5, 1.5, 13.5, 0.25)
    assert there.first_step_s is None
    assert dict(back.parts_s) == {
        "generating on": 1.0,
        "moving requests": 0.25,
        "freeing memory": 0.25,
        "building the trainer": 0.75,
        "meeting the trainers": 0.25,
        "step's end": 0.25,
        "joining": 0.375,  # its state is written down a little later than the step begins
        "batch": 0.0,
    }
    assert (back.total_s, back.own_s, back.first_step_s) == (3.125, 1.875, 7.125)


@pytest.mark.parametrize("missing", ["first_token", "weights_taken", "step_boundary"])
def test_a_move_that_came_to_no_useful_work_is_none(missing: str) -> None:
    rest = [event for event in TO_ROLLOUT if event.get("phase") != missing]
    assert [move.action for move in read_moves(DECISIONS, [*rest, *TO_TRAIN])] == ["to_train"]


def test_a_gang_that_leaves_the_trainers_before_their_next_step_has_done_nothing_there() -> None:
    events = [*TO_TRAIN[:-2], slot(23.5, "a", "leaving_train"), step(40.0, 41.0, "a", "b")]
    assert read_moves(DECISIONS[2:], events) == []


def test_a_stall_is_the_longest_gap_of_another_replica_beyond_the_usual() -> None:
    (move,) = read_moves(DECISIONS[:1], TO_ROLLOUT)
    before = [replica("b", 0.0, 2.0, 0.01), replica("b", 2.0, 4.0, 0.03), replica("b", 4.0, 6.0, 0.02)]
    during = [replica("b", 9.0, 11.0, 0.05), replica("b", 11.0, 13.0, 0.07), replica("c", 13.0, 15.0, 0.04)]
    others = [replica("a", 13.0, 14.0, 5.0), replica("b", 13.5, 15.0, 5.0), replica("c", 10.0, 12.0, 5.0, num_tokens=0)]
    gaps = gaps_beyond_usual([move], [*before, *during, *others])
    assert gaps is not None
    assert gaps.in_moves_s == [pytest.approx(0.07 - 0.02)]
    assert gaps_beyond_usual([move], during) is None, "what is usual is not known"
    quick = [replica("b", 11.0, 13.0, 0.001)]
    assert gaps_beyond_usual([move], [*before, *quick]) == Gaps(in_moves_s=[0.0], between_moves_s=[])


def test_gaps_between_moves_are_those_of_stretches_without_one() -> None:
    (move,) = read_moves(DECISIONS[:1], TO_ROLLOUT)
    before, in_it = replica("b", 2.0, 4.0, 0.02), replica("c", 11.0, 14.0, 0.5)
    between = [
        replica("b", 14.0, 16.0, 0.05),
        replica("a", 13.5, 15.0, 0.01),
        replica("c", 14.0, 15.0, 9.0, num_tokens=0),
    ]
    gaps = gaps_beyond_usual([move], [before, in_it, *between])
    assert gaps is not None
    assert gaps.between_moves_s == [pytest.approx(0.03), 0.0]


def test_every_token_stands_in_an_answer_or_was_made_twice() -> None:
    samples = [{"step": 1, "rewards": [[1.0, 0.0], [0.0]]}, {"step": 2, "rewards": [[1.0]]}]
    metrics: list[Line] = [
        {"step": 0},
        {"step": 1, "response_length/mean": 10 / 3, "vllm:generation_tokens": 99.0},
        {"step": 2, "response_length/mean": 5.0, "vllm:generation_tokens": 24.0},
    ]
    answers = [
        {"kind": "held_out", "step": 0, "num_response_tokens": 7},
        {"kind": "held_out", "step": 2, "num_response_tokens": 8},
        {"kind": "training", "step": 1, "num_response_tokens": 4},
    ]
    assert num_tokens_made_twice(metrics, samples, answers) == 24 - 10 - 5 - 7


def test_a_gang_moves_where_another_has_its_role() -> None:
    def gang(name: str, state: str) -> GangStatus:
        return GangStatus(id=name, state=state, num_slots=1, type="cpu")

    gangs = [gang("a", "train"), gang("b", "rollout"), gang("c", "rollout"), gang("d", "idle")]
    assert reallocate.possible_moves(gangs) == [("b", "train"), ("c", "train")]


def test_a_run_that_lies_there_is_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / reallocate.NAME
    run.mkdir()
    lines: dict[str, list[Line]] = {
        "decisions": DECISIONS,
        "events": [replica("b", 0.0, 2.0, 0.01), *TO_ROLLOUT, *TO_TRAIN],
        "metrics": [{"step": 1, "response_length/mean": 5.0, "vllm:generation_tokens": 6.0}],
        "samples": [{"step": 1, "rewards": [[1.0]]}],
        "answers": [],
    }
    for name, content in lines.items():
        (run / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in content))
    summary: dict[str, Any] = {"groups_admitted": 5, "groups_trained": 3, "groups_dropped": {"flat": 1}}
    (run / "summary.json").write_text(json.dumps(summary))
    (run / "versions.json").write_text("{}")
    assert reallocate.main(["--moves", "2", "--folder", str(tmp_path), "--json", str(tmp_path / "out")]) == 1
    found = json.loads((tmp_path / "out").read_text())
    assert {check["name"]: (check["value"], check["met"]) for check in found["checks"]} == {
        "moves": (2, True),
        "to rollout: from the decision to useful work, p99, s": (3.5, False),
        "to rollout: the same without waiting for a step's end, p99, s": (1.5, False),
        "to training: from the decision to useful work, p99, s": (3.125, False),
        "to training: the same without waiting for a step's end, p99, s": (1.875, False),
        "longest gap of the other replicas beyond the usual, p99, s": (0.0, True),
        "prompt groups lost": (1, False),
        "tokens lost, and made again": (1, False),
    }
    assert "1 moves to rollout" in capsys.readouterr().out
