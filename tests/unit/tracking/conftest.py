"""An invented run: written to a folder through the real tracker, so that its files are what a real run leaves."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from small_runs import slot_event

from rlserve.tracking import names
from rlserve.tracking.answers import Answer
from rlserve.tracking.config import TrackingConfig, WandbConfig
from rlserve.tracking.events import (
    Decision,
    FailureEvent,
    MoveEvent,
    ReplicaEvent,
    RunEvent,
    StepEvent,
    TrainedBatch,
    WeightEvent,
)
from rlserve.tracking.run_folder import RunFolder
from rlserve.tracking.summary import RunSummary, write_summary
from rlserve.tracking.tracker import Tracker, create_tracker

FILES_ONLY = TrackingConfig(wandb=WandbConfig(enabled=False), tensorboard=False)
CONFIG = "manager:\n  policy: queue_threshold\n  queue_low: 6\n  queue_high: 20\n"

MakeRun = Callable[..., RunFolder]


def make_summary(**changes: object) -> RunSummary:
    values: dict[str, object] = {
        "held_out_before": 0.41,
        "held_out_after": 0.97,
        "num_steps": 60,
        "groups_admitted": 970,
        "groups_trained": 960,
        "groups_dropped": {"prompt_too_long": 8, "run_ended": 2},
        "moves_to_rollout": 3,
        "moves_to_train": 2,
        "engine_restarts": 0,
        "worker_failures": 1,
        "final_weight_version": 60,
        "seconds_to_first_step": 31.5,
        "seconds_total": 247.25,
        "rollout_tokens_per_s": 1834.5,
        "trained_tokens_per_s": 1650.25,
        "max_staleness": 1,
        "mean_abs_log_prob_difference": 2.5e-6,
    }
    return RunSummary(**(values | changes))  # type: ignore[arg-type]


def make_answers(step: int, number: int) -> list[Answer]:
    """Answers to one prompt; the last is the best."""
    return [
        Answer(
            step=step,
            kind="training",
            group_id="0:3",
            index=index,
            prompt="What is <b>12+30</b> in $?",
            reference="42",
            response=f"It is {34 + index}, since\n" + "12+30 is what it is, " * index * index,
            reward=index / (number - 1),
            finish_reason="stop",
            num_prompt_tokens=12,
            num_response_tokens=5 + index,
            weight_spans=((step - 1, 0, 5 + index),),
            staleness=0,
        )
        for index in range(number)
    ]


class InventedRun:
    """Queue, moves and metrics as a run might have them; every number follows from the seed."""

    def __init__(self, tracker: Tracker, num_slots: int, num_steps: int, step_s: float) -> None:
        self.random = random.Random(num_slots * 1000 + num_steps)
        self.tracker = tracker
        self.num_steps = num_steps
        self.step_s = step_s
        half = num_slots // 2
        self.slots = {
            **{f"H100/{index}": "H100" for index in range(half)},
            **{f"H200/{index}": "H200" for index in range(num_slots - half)},
        }
        self.owner = {slot_id: "train" if kind == "H100" else "rollout" for slot_id, kind in self.slots.items()}
        self.queue = 10.0
        self.last_move_s = 0.0
        self.last_stretch_s = 8.0

    def give(self, slot_id: str, owner: str, time_s: float, state: str = "") -> None:
        self.owner[slot_id] = owner
        self.tracker.record(slot_event(time_s, slot_id, owner, state))

    def count(self, owner: str) -> int:
        return sum(other == owner for other in self.owner.values())

    def write(self) -> None:
        self.tracker.record(RunEvent(time_s=0.0, begin_s=0.0, resumed=False, step=0))
        for slot_id, owner in list(self.owner.items()):
            self.give(slot_id, "moving", 0.0)
            self.give(slot_id, owner, 6.0)
        self.tracker.log(0, {names.HELD_OUT: 0.41})
        end_s = 12 + self.num_steps * self.step_s
        time_s = 8.0
        next_step = 1
        dies_s = end_s * 0.6
        while time_s < end_s:
            self.roll_out(time_s)
            self.decide(time_s, next_step - 1)
            if dies_s is not None and time_s > dies_s:
                victim = next(slot_id for slot_id, owner in self.owner.items() if owner == "rollout")
                self.give(victim, "dead", time_s)
                self.tracker.record(FailureEvent(time_s=time_s, slot_id=victim, reason="killed"))
                self.give(victim, "moving", time_s + end_s * 0.02)
                self.give(victim, "rollout", time_s + end_s * 0.03)
                dies_s = None
            while next_step <= self.num_steps and 12 + next_step * self.step_s <= time_s:
                self.log_step(next_step, time_s)
                next_step += 1
            time_s += max(1.0, end_s / 600)
        while next_step <= self.num_steps:
            self.log_step(next_step, end_s)
            next_step += 1
        self.tracker.log(self.num_steps, {names.HELD_OUT: 0.97})
        self.tracker.log_answers(self.num_steps, "training", lambda: make_answers(self.num_steps, 8))

    def roll_out(self, time_s: float) -> None:
        """What the replicas did since they were asked last."""
        if time_s - self.last_stretch_s < self.num_steps * self.step_s / 50:
            return
        begin_s, self.last_stretch_s = self.last_stretch_s, time_s
        for slot_id, owner in self.owner.items():
            if owner == "rollout":
                busy_s = (time_s - begin_s) * self.random.uniform(0.7, 0.95)
                self.tracker.record(
                    ReplicaEvent(
                        time_s=time_s,
                        slot_id=slot_id,
                        begin_s=begin_s,
                        busy_s=busy_s,
                        running_s=20 * busy_s,
                        num_tokens=int(600 * busy_s),
                        longest_gap_s=0.02,
                    )
                )

    def decide(self, time_s: float, step: int) -> None:
        drift = (self.count("train") - self.count("rollout")) * 1.2 + self.random.gauss(0.6, 2.2)
        self.queue = min(max(self.queue + drift, 0.0), 40.0)
        action, slot_id = "hold", None
        if time_s - self.last_move_s > (12 + self.num_steps * self.step_s) / 18:
            if self.queue > 20 and self.count("train") > 1:
                action, slot_id = "to_rollout", next(s for s, owner in self.owner.items() if owner == "train")
            elif self.queue < 6 and self.count("rollout") > 1:
                action, slot_id = "to_train", next(s for s, owner in self.owner.items() if owner == "rollout")
        decision = Decision(
            time_s=time_s,
            step=step,
            action=action,  # type: ignore[arg-type]
            slot_id=slot_id,
            queue_length=round(self.queue),
            num_train=self.count("train"),
            num_rollout=self.count("rollout"),
            reason=f"queue {round(self.queue)}",
            rate_now=4.0,
            rate_after=4.32,
            numbers={"queue_high": 20, "queue_low": 6},
        )
        self.tracker.record(decision)
        if slot_id is not None:
            self.last_move_s = time_s
            self.give(slot_id, "moving", time_s, "joining" + action.removeprefix("to"))
            self.give(slot_id, action.removeprefix("to_"), time_s + 1.5)
            self.tracker.record(
                MoveEvent(
                    time_s=time_s + 1.5,
                    slot_id=slot_id,
                    action=action,  # type: ignore[arg-type]
                    begin_s=time_s,
                    trainer_pause_s=0.25,
                )
            )

    def log_step(self, step: int, time_s: float) -> None:
        progress = step / self.num_steps
        begin_s = time_s - self.step_s
        self.tracker.record(
            StepEvent(
                time_s=time_s,
                step=step,
                begin_s=begin_s,
                work_begin_s=begin_s + 0.2 * self.step_s,
                work_end_s=time_s - 0.05 * self.step_s,
                slot_ids=tuple(slot_id for slot_id, owner in self.owner.items() if owner == "train"),
                num_groups=16,
                num_tokens=4000,
            )
        )
        self.tracker.record(
            TrainedBatch(
                step=step,
                group_ids=("a", "b", "c"),
                attempts=(0, 0, 0),
                oldest_versions=(step - 1, step - 1, max(step - 2, 0)),
                rewards=((0.0,), (1.0,), (1.0,)),
            )
        )
        self.tracker.record(WeightEvent(time_s=time_s, version=step, slot_id=None, duration_s=0.1, pause_s=0.02))
        self.tracker.log(
            step,
            {
                names.TIME: time_s,
                names.QUEUE_LENGTH: round(self.queue),
                "rollout/num_buffered": 8,
                "pool/num_train": self.count("train"),
                "pool/num_rollout": self.count("rollout"),
                names.REWARD: min(1.0, 0.4 + 0.57 * progress**0.5 + self.random.gauss(0, 0.05)),
                names.KL: 0.002 * progress + self.random.gauss(0, 0.0004),
                names.KL_K3: 0.002 * progress,
                names.ENTROPY: 1.2 - 0.7 * progress,
                names.RESPONSE_LENGTH: 40 + 300 * progress + self.random.gauss(0, 8),
                names.CLIP_RATIO: 0.3 * (1 - progress),
                names.FRAC_REWARD_ZERO_STD: 0.1 + 0.6 * progress,
                names.STEP_S: self.step_s,
                names.WAIT_S: self.step_s * self.random.uniform(0.1, 0.4),
                names.ROLLOUT_BUSY: self.random.uniform(0.7, 0.95),
                names.LOG_PROB_DIFFERENCE: 2e-6 * self.random.uniform(0.6, 1.5),
                names.STALENESS_MAX: float(self.random.random() < 0.4),
                names.ROLLOUT_TOKENS_PER_S: 450.0 * self.count("rollout") + self.random.gauss(0, 60),
                names.TRAINED_TOKENS_PER_S: 700.0 + 80 * self.count("train") + self.random.gauss(0, 60),
            },
        )


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    def make(*, name: str = "invented", num_slots: int = 4, num_steps: int = 60, step_s: float = 4.0) -> RunFolder:
        return write_invented_run(tmp_path, name=name, num_slots=num_slots, num_steps=num_steps, step_s=step_s)

    return make


def write_invented_run(output_dir: Path, *, name: str, num_slots: int, num_steps: int, step_s: float) -> RunFolder:
    folder = RunFolder.create(output_dir, name)
    folder.write_config(CONFIG)
    tracker = create_tracker(FILES_ONLY, folder, {})
    InventedRun(tracker, num_slots, num_steps, step_s).write()
    tracker.close(0)
    write_summary(folder, make_summary(num_steps=num_steps))
    return folder
