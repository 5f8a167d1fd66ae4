"""The story of a run's decisions, from the lines of its files to words."""

from __future__ import annotations

import re
from dataclasses import asdict
from itertools import chain, pairwise
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from known_rates import World

from rlserve.tracking.events import Decision, EndEvent, Event, SlotEvent, TurnEvent
from rlserve.tracking.explanation import Explanation, Hold, describe, explain

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


END = line(EndEvent(time_s=200.0, exit_code=0, error=None))


def explained(decisions: list[dict[str, Any]], events: list[dict[str, Any]], num_steps: int = 30) -> Explanation:
    return explain("demo", decisions=decisions, events=events, metrics=[{"step": num_steps}], config=CONFIG)


def working_run() -> World:
    """Training waits for rollout; two slots go there, one after the other, and a third much later."""
    world = World(1)
    world.steps(12)
    world.move(1, now=0.05, after=0.06, target=2)
    world.steps(1)
    world.move(1, now=0.06, after=0.07, target=3)
    world.steps(14)
    world.move(1, now=0.1, after=0.12, target=4)
    world.steps(1)
    return world


def test_series_of_moves_are_told_with_what_was_expected_and_what_came() -> None:
    world = working_run()
    told = describe(explained(world.decisions, world.events, num_steps=28))
    words = " ".join(told.split())
    assert words.startswith("demo: policy rate_matching, 28 training steps in ")
    assert "The trainer waited 69% of its time for answers, the replicas computed 100% of theirs." in words
    assert "3 moves: 3 to rollout, 0 to training. They took 6.0 s in all" in words
    assert "training stood still for 6.0 s of it." in words
    assert "1 of 2 series of moves can be judged by itself." in words
    assert re.search(
        r"Verdict: the moves paid: \+\d+\.\d ± \d+\.\d % against the split of the start \(5 train, 1 roll", words
    )
    assert "2 moves to rollout, from step 12 on (before them 5 train, 1 roll out)" in words
    assert words.count("why: it pays") == 2, "the same reason is told once in a series"
    assert "expected: the rate +40.0 % by all of them together" in words
    assert re.search(r"0\.\d+ → 0\.\d+ prompt groups a second, where the split before would have made 0\.\d+", words)
    assert "they took 4.0 s, of which training stood still for 4.0 s" in words
    assert "s/1 to rollout, after step 27 (before it 3 train, 3 roll out)" in words
    assert "expected: 0.1 → 0.12 prompt groups a second (+20.0 %)" in words
    assert "what it brought cannot be told: only 1 training step followed afterwards" in words


def test_slots_that_share_processors_tell_little_about_other_splits() -> None:
    world = working_run()
    told = describe(explained(world.decisions, world.events))
    assert "if the best split at every" in told
    assert "share processors" not in told
    shared = [{**event, "slot_type": "cpu"} if event["event"] == "slot" else event for event in world.events]
    words = " ".join(describe(explained(world.decisions, shared)).split())
    assert "uncertain beyond its ±: the slots share processors" in words


def test_a_paced_run_says_so_and_whether_it_counts() -> None:
    world = working_run()
    config = {**CONFIG, "pool": {"slots": [{"type": "paced-H100", "count": 6}]}}
    told = describe(
        explain(
            "demo",
            decisions=world.decisions,
            events=world.events,
            metrics=(),
            config=config,
            host_was_bottleneck=True,
        )
    )
    assert "times as modelled" in told.splitlines()[0]
    assert "too slow for the pace" in told.splitlines()[1]


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
        "        0:00 – 3:18 (160 s of it): queue 196 is below 4",
        "        0:08 – 3:20 (40 s of it): queue 198 is above 8",
    ]
    assert describe(explanation, in_full=True).count("nothing moved") == 40


def test_a_run_that_goes_on_or_was_killed_is_told_as_far_as_it_is_written() -> None:
    nothing = explain("new", decisions=[], events=[], metrics=[], config={})
    assert describe(nothing).endswith("The manager has decided nothing yet.\n")
    moving = explained([decision(20.0, "pays", "to_rollout")], [taken(20.0, "moving")])
    told = describe(moving)
    assert "so far" in told
    assert "it is under way" in told
    early = describe(explained([decision(20.0, "pays", "to_rollout")], [taken(22.0, "rollout")]))
    assert "it took 2.0 s; what it brought cannot be told: only 0 training steps followed afterwards" in early
    assert "No verdict yet" in early
    lost = describe(explained([decision(20.0, "pays", "to_rollout")], [taken(20.0, "moving"), END]))
    assert "the slot did not get there" in lost
    off = explained(
        [decision(20.0, "pays", "to_train"), decision(22.0, "pays", "to_rollout")], [taken(24.0, "rollout")]
    )
    assert "it was called off before it began" in describe(off)


def test_a_gang_that_generates_until_a_step_ends_does_not_move_meanwhile() -> None:
    made = decision(10.0, "queue 0 < 2", "to_train")
    events = [taken(10.0, "rollout"), taken(30.0, "moving"), taken(32.5, "train")]
    explanation = explained([made, decision(40.0, "the split is good")], events)
    judged, hold = explanation.entries
    (move,) = explanation.moves
    assert not isinstance(judged, Hold)
    assert (move.waited_s, move.duration_s, move.end_s, explanation.moving_s) == (20.0, 2.5, 32.5, 2.5)
    assert isinstance(hold, Hold)
    assert hold.begin_s == 40.0
    assert "came: after 20.0 s at its old work, until a training step ended, it took 2.5 s" in describe(explanation)


@given(
    st.lists(st.tuples(st.sampled_from(["hold", "to_rollout", "to_train"]), st.floats(0.0, 50.0)), max_size=20),
    st.lists(st.tuples(st.sampled_from(["rollout", "train", "moving", "dead"]), st.floats(0.0, 900.0)), max_size=20),
)
@example([("to_train", 0.0), ("hold", 0.0), ("hold", 0.0)], [("train", 1.0)])  # held while the slot was on its way
def test_every_second_is_told_once(plans: list[tuple[str, float]], owners: list[tuple[str, float]]) -> None:
    decisions, now_s = [], 0.0
    for action, after_s in plans:
        now_s += after_s
        decisions.append(decision(now_s, f"{action} 1", action))
    events = [taken(time_s, owner) for owner, time_s in sorted(owners, key=lambda each: each[1])]
    explanation = explained(decisions, events)
    assert len(explanation.moves) == sum(plan != "hold" for plan, _ in plans)
    holds = [*(entry for entry in explanation.entries if isinstance(entry, Hold)), *chain(*explanation.within)]
    spans = sorted(
        [*((hold.begin_s, hold.end_s) for hold in holds), *((move.time_s, move.end_s) for move in explanation.moves)]
    )
    assert all(begin_s <= end_s for begin_s, end_s in spans)
    assert all(one[1] <= other[0] + 1e-9 for one, other in pairwise(spans))
    assert len(describe(explanation)) <= len(describe(explanation, in_full=True))


def test_slots_that_have_both_roles_in_turn() -> None:
    turns = [
        line(TurnEvent(time_s=end_s, to=to, begin_s=end_s - 2.0, released_bytes=1, kept_bytes=1))
        for end_s, to in ((50.0, "rollout"), (100.0, "train"))
    ]
    assert describe(explained([], [*turns, END])).splitlines()[:2] == [
        "demo: both roles in turn, 30 training steps in 3:20 in all",
        "All slots changed sides 2 times, in 4.0 s in all, 2% of the time.",
    ]
