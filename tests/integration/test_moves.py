"""Slots that move between training and rollout because of the queue, and what is true of every moment of it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest
from runs import Run, Workplace, merged

pytestmark = pytest.mark.slow

# Few sequences at once and long answers: groups queue up. Held rewards: they run dry.
ELASTIC: Mapping[str, Any] = {
    "num_steps": 4,
    "rollout": {"max_tokens": 96, "engine": {"max_num_sequences": 2}, "prompts_per_step": 8},
    "pool": {
        "slots": [
            {"type": "cpu-a", "count": 2, "prefer": "train"},
            {"type": "cpu-b", "count": 1, "prefer": "rollout"},
        ],
    },
    "manager": {"policy": "queue_threshold", "interval_s": 0.1, "cooldown_s": 0.2, "queue_high": 6, "queue_low": 2},
}

GANGS = merged(
    ELASTIC,
    {
        "rollout": {"engine": {"tensor_parallel_size": 2}},
        "pool": {
            "slots": [
                {"type": "cpu-a", "count": 4, "prefer": "train"},
                {"type": "cpu-b", "count": 2, "prefer": "rollout"},
            ],
        },
    },
)


def moves_done(run: Run, owner: str) -> list[str]:
    """Slots that came to ``owner`` after having had another, in order."""
    settled: dict[str, str] = {}
    moved = []
    for event in run.events("slot"):
        if event["owner"] in ("train", "rollout"):
            before = settled.get(event["slot_id"])
            settled[event["slot_id"]] = event["owner"]
            if before is not None and before != event["owner"] == owner:
                moved.append(event["slot_id"])
    return moved


def assert_one_owner_always(run: Run) -> None:
    """Replaying the events: a slot goes from one role to another, or comes back from the dead, only by moving; every
    slot is there from the first event to the last. One that is called to training rolls out as before."""
    owners: dict[str, str] = {}
    for event in run.events("slot"):
        before, after = owners.get(event["slot_id"]), event["owner"]
        owners[event["slot_id"]] = after
        if before is not None and before != "moving" and (before, after) != ("rollout", "rollout"):
            assert after in ("moving", "dead"), f"{before} to {after} at once: {event}"


def assert_whole(run: Run, *, num_failures: int = 0) -> dict[str, Any]:
    assert run.wait() == 0, run.output
    summary: dict[str, Any] = json.loads((run.folder / "summary.json").read_text())
    trained = [group_id for line in run.lines("samples.jsonl") for group_id in line["group_ids"]]
    assert len(trained) == len(set(trained)) == summary["groups_trained"] == summary["groups_admitted"] == 4 * 8
    assert summary["worker_failures"] == num_failures
    assert_one_owner_always(run)
    return summary


def gang_of(slot_id: str) -> str:
    """With two slots a gang."""
    type_name, _, number = slot_id.partition("/")
    first = int(number) // 2 * 2
    return f"{type_name}/{first}-{first + 1}"


def test_gangs_of_two_move_in_both_directions_and_survive_a_follower(workplace: Workplace) -> None:
    """A replica is one engine over two workers. The one that follows is killed; then the gang moves all the same."""
    run = workplace.start("moves", GANGS)
    run.wait_until(lambda: len(moves_done(run, "rollout")) == 2, "a gang's move to rollout")
    os.kill(run.worker("cpu-b/1"), signal.SIGKILL)
    run.wait_until(lambda: len(run.events("failure")) == 1, "the loss")
    assert run.events("failure")[0]["slot_id"] == "cpu-b/1"
    run.wait_until(lambda: {run.owners()[f"cpu-b/{number}"] for number in (0, 1)} == {"rollout"}, "both back")
    workplace.hold()
    run.wait_until(lambda: len(moves_done(run, "train")) == 2, "a gang's move to training")
    by_hand = gang_of(moves_done(run, "train")[0])
    move_by_hand(run, by_hand, "rollout")
    assert {run.owners()[slot_id] for slot_id in slots_of(by_hand)} == {"rollout"}
    listed = move_by_hand(run)
    assert re.search(rf"{by_hand} .* rollout .*moved by hand, held for another", listed), listed
    assert "the policy decides about" in move_by_hand(run, "--release")
    run.wait_until(lambda: len(moves_done(run, "train")) == 4, "the policy's own move")
    leaving = gang_of(next(slot_id for slot_id, owner in run.owners().items() if owner == "train"))
    os.kill(run.worker(slots_of(leaving)[1]), signal.SIGTERM)  # a notice: the gang is emptied, and nothing is lost
    run.wait_until(lambda: {run.owners()[slot_id] for slot_id in slots_of(leaving)} == {"gone"}, "the gang emptied")
    workplace.release()
    summary = assert_whole(run, num_failures=1)
    assert summary["engine_restarts"] == 1
    decisions = run.lines("decisions.jsonl")
    for action, role in (("to_rollout", "rollout"), ("to_train", "train")):
        moved = moves_done(run, role)
        gangs = [gang_of(slot_id) for slot_id in moved[::2]]
        assert moved == [f"{gang.partition('/')[0]}/{number}" for gang in gangs for number in _numbers(gang)]
        assert summary[f"moves_{action}"] == len(gangs)
        made = [decision for decision in decisions if decision["action"] == action]
        assert [decision["slot_id"] for decision in made][: len(gangs)] == gangs
        assert all("queue" in decision["reason"] or decision["reason"] == "by hand" for decision in made)
    decided = [decision for decision in decisions if decision["reason"] != "by hand"]
    assert len(decisions) - len(decided) == 1
    assert all(decision["queue_length"] > 6 for decision in decided if decision["action"] == "to_rollout")
    assert all(decision["queue_length"] < 2 for decision in decided if decision["action"] == "to_train")
    workers = sorted(event["slot_id"] for event in run.events("worker"))
    assert workers == sorted([*run.owners(), "cpu-b/1"]), "one process a slot, and one more for the lost one"


def slots_of(gang_id: str) -> tuple[str, ...]:
    return tuple(f"{gang_id.partition('/')[0]}/{number}" for number in _numbers(gang_id))


def move_by_hand(run: Run, *arguments: str) -> str:
    """What ``rlserve move`` says."""
    command = [sys.executable, "-m", "rlserve", "move", str(run.folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == 0, done.stderr
    return done.stdout


def _numbers(gang_id: str) -> tuple[int, int]:
    first, last = gang_id.partition("/")[2].split("-")
    return int(first), int(last)


def test_killed_in_mid_move(workplace: Workplace) -> None:
    """The slot on the way to training dies: it gets a new worker, and the run goes on. Its process is stopped before
    the move, so that the move cannot be over before it is seen. The other direction, and every moment of a move, are in
    ``tests/unit/controller/test_controller.py``."""
    mover = "cpu-a/0"
    run = workplace.start(
        "killed", merged(ELASTIC, {"manager": {"cooldown_s": 2.0}, "pool": {"health_timeout_s": 600.0}})
    )
    run.wait_until(lambda: "starting Ray" in run.output, "the reward was tried")
    workplace.hold()  # the held-out score waits for its rewards, so nothing is decided yet
    run.wait_until(lambda: sorted(run.owners().values()) == ["rollout", "train", "train"], "all slots at their work")
    workplace.release()
    run.wait_until(lambda: moves_done(run, "rollout") == [mover], "a move to rollout")
    workplace.hold()
    os.kill(run.worker(mover), signal.SIGSTOP)
    run.wait_until(lambda: run.owners()[mover] == "moving", "the slot on its way")
    os.kill(run.worker(mover), signal.SIGKILL)
    run.wait_until(lambda: bool(run.events("failure")), "the loss")
    workplace.release()
    assert_whole(run, num_failures=1)
