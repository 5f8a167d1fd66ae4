"""The story of a run's decisions, from the lines of its files to words."""

from __future__ import annotations

from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlserve.tracking.events import Decision, EndEvent, Event, MoveOutcome, SlotEvent
from rlserve.tracking.explanation import Explanation, Hold, Move, describe, explain

FORECAST = {"rate_now": 2.0, "rate_after": 2.5, "gain": 60.0, "cost": 4.0, "horizon_s": 120.0}
CONFIG: Any = {"manager": {"policy": "rate_matching"}, "rollout": {"prompts_per_step": 16}}


def decision(time_s: float, reason: str, action: Any = "hold", **more: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "time_s": time_s,
        "step": int(time_s),
        "action": action,
        "slot_id": None if action == "hold" else "cpu/1",
        "queue_length": 3,
        "num_train": 3,
        "num_rollout": 1,
        "reason": reason,
    }
    return asdict(Decision(**values | more))


def line(event: Event) -> dict[str, Any]:
    return {"event": event.kind, **asdict(event)}


def taken(time_s: float, owner: Any, slot_id: str = "cpu/1") -> dict[str, Any]:
    return line(SlotEvent(time_s=time_s, slot_id=slot_id, gang_id=slot_id, slot_type="cpu", owner=owner, state=owner))


def outcome(begin_s: float, **more: float) -> dict[str, Any]:
    values: dict[str, Any] = {
        "time_s": begin_s + 20.0,
        "slot_id": "cpu/1",
        "action": "to_rollout",
        "begin_s": begin_s,
        "duration_s": 2.0,
        "trainer_pause_s": 0.5,
        "rate_before": 2.0,
        "rate_after": 2.4,
        "load": 1.0,
        "cost": 6.0,
        "num_steps_before": 8,
        "num_steps_after": 8,
        "predicted_rate_before": 2.0,
        "predicted_rate_after": 2.5,
        "predicted_cost": 4.0,
    }
    return line(MoveOutcome(**values | more))


END = line(EndEvent(time_s=200.0, exit_code=0, error=None))


def explained(decisions: list[dict[str, Any]], events: list[dict[str, Any]], step_s: float = 200.0) -> Explanation:
    return explain("demo", decisions=decisions, events=events, config=CONFIG, last_step=(30, step_s))


def test_a_move_is_told_with_what_was_expected_and_what_came() -> None:
    explanation = explained(
        [
            decision(10.0, "3 steps were measured, 4 are needed"),
            decision(98.0, "training waits for rollout", "to_rollout", **FORECAST),
            decision(100.0, "the split is good", num_train=2, num_rollout=2),
        ],
        [taken(98.0, "moving"), taken(100.0, "rollout"), outcome(98.0), END],
    )
    assert describe(explanation) == (
        "demo: policy rate_matching, 30 training steps in 3:20 in all\n"
        "1 move: 1 to rollout, 0 to training. They took 2.0 s in all, 1% of the time, and training "
        "stood still for 0.5 s of it.\n"
        "Each until the next, less costs, they were to bring 46 prompt groups more, "
        "and brought 34 prompt groups more.\n"
        "Verdict: 34 prompt groups more (+7.6 %) than with the split of the start; 480 were trained in all.\n"
        "\n"
        "   0:10 – 1:38 nothing moved: 3 train, 1 roll out\n"
        "        3 steps were measured, 4 are needed\n"
        "\n"
        "   1:38 cpu/1 to rollout, after step 98 (before it 3 train, 1 roll out)\n"
        "        why: training waits for rollout\n"
        "        expected: 2 → 2.5 prompt groups a second (+25.0 %); 60 prompt groups more in 120 s, for 4.0 that\n"
        "          moving costs\n"
        "        came: 2 → 2.4 prompt groups a second (+20.0 %); it took 2.0 s, of which training stood still for 0.5\n"
        "          s, and 6.0 prompt groups were lost by it. In the 1:40 until the next move it brought 34 prompt\n"
        "          groups more in all\n"
        "\n"
        "   1:40 – 3:20 nothing moved: 2 train, 2 roll out\n"
        "        the split is good\n"
    )


def test_holds_are_folded_by_their_grounds_and_the_longest_told() -> None:
    decisions = [
        decision(float(second), f"queue {second} is {'below 4' if second % 10 < 7 else 'above 8'}")
        for second in range(0, 200, 2)
    ]
    explanation = explained(decisions, [END])
    assert all(isinstance(entry, Hold) for entry in explanation.entries)
    assert len(explanation.entries) == 40, "twice 20 times back and forth"
    told = describe(explanation).splitlines()
    assert told[1] == "Nothing moved."
    assert told[3:] == [
        "   0:00 – 3:20 nothing moved: 3 train, 1 roll out",
        "        160 s: queue 196 is below 4",
        "        40 s: queue 198 is above 8",
    ]
    assert describe(explanation, in_full=True).count("nothing moved") == 40


def test_what_moves_gained_lasts_until_the_end_and_those_of_which_nothing_is_known_are_counted() -> None:
    explanation = explained(
        [
            decision(20.0, "pays", "to_rollout"),
            decision(100.0, "pays", "to_train", num_train=2, num_rollout=2),
            decision(110.0, "pays", "to_train", num_train=3, num_rollout=1),
        ],
        [
            taken(20.0, "rollout"),
            outcome(20.0, rate_before=2.0, rate_after=2.5, cost=10.0),
            taken(100.0, "train"),
            outcome(100.0, rate_before=2.5, rate_after=2.4, cost=0.0, load=1.5),
            END,
        ],
    )
    first, second, third = explanation.moves
    assert (first.gain, second.gain, third.gain) == (pytest.approx(30.0), pytest.approx(-1.0), None)
    assert explanation.gain_against_start is None, "the third may have been the one that mattered"
    judged = replace(explanation, entries=explanation.entries[:-1])
    assert judged.gain_against_start == pytest.approx(0.5 * 180 - 10 - 0.1 * 100)
    told = " ".join(describe(explanation).split())
    assert "1 of them could not be judged" in told
    assert "no verdict" in told
    assert "were to bring" not in told, "this policy predicts nothing"
    assert "1.50 times as heavy" in told
    assert "the slot did not get there" in told


def test_a_run_that_goes_on_or_was_killed_is_told_as_far_as_it_is_written() -> None:
    nothing = explain("new", decisions=[], events=[], config={}, last_step=(0, 0.0))
    assert describe(nothing).endswith("The manager has decided nothing yet.\n")
    moving = explained([decision(20.0, "pays", "to_rollout")], [taken(20.0, "moving")], step_s=21.0)
    told = describe(moving)
    assert "so far" in told
    assert "it is under way" in told
    early = explained([decision(20.0, "pays", "to_rollout")], [taken(22.0, "rollout")], step_s=30.0)
    assert "it took 2.0 s; too few training steps" in describe(early)
    assert early.gain_against_start is None


def test_a_gang_that_generates_until_a_step_ends_does_not_move_meanwhile() -> None:
    made = decision(10.0, "queue 0 < 2", "to_train")
    events = [taken(10.0, "rollout"), taken(30.0, "moving"), taken(32.5, "train")]
    explanation = explained([made, decision(40.0, "the split is good")], events)
    move, hold = explanation.entries
    assert isinstance(move, Move)
    assert (move.waited_s, move.duration_s, move.end_s, explanation.moving_s) == (20.0, 2.5, 32.5, 2.5)
    assert isinstance(hold, Hold)
    assert hold.begin_s == 40.0
    assert "came: after 20.0 s at its old work, until a training step ended, it took 2.5 s" in describe(explanation)


@given(
    st.lists(st.tuples(st.sampled_from(["hold", "to_rollout", "to_train"]), st.floats(0.0, 50.0)), max_size=20),
    st.lists(st.tuples(st.sampled_from(["rollout", "train", "moving", "dead"]), st.floats(0.0, 900.0)), max_size=20),
)
def test_every_second_is_told_once(plans: list[tuple[str, float]], owners: list[tuple[str, float]]) -> None:
    decisions, now_s = [], 0.0
    for action, after_s in plans:
        now_s += after_s
        decisions.append(decision(now_s, f"{action} 1", action))
    events = [taken(time_s, owner) for owner, time_s in sorted(owners, key=lambda each: each[1])]
    explanation = explained(decisions, events)
    assert sum(isinstance(entry, Move) for entry in explanation.entries) == sum(plan != "hold" for plan, _ in plans)
    spans = [
        (entry.begin_s, entry.end_s) if isinstance(entry, Hold) else (entry.time_s, entry.end_s)
        for entry in explanation.entries
    ]
    assert all(begin_s <= end_s for begin_s, end_s in spans)
    assert all(one[1] <= other[0] + 1e-9 for one, other in pairwise(spans))
    assert describe(explanation, in_full=True)
