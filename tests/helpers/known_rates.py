"""A run made from known rates, as the lines of its files: what is found of it can be held against what is true."""

from __future__ import annotations

import random
from typing import Any

from rlserve.tracking.hindsight.lines import Straight

NUM_GROUPS = 10
TOKENS = 100
"""Of a trained group."""
TRAIN_SLOT_RATE = 50.0
"""Tokens a second of one training slot."""
DECODE = {"q": Straight(base=0.1, slope=0.01), "s": Straight(base=0.2, slope=0.01)}
NUM_SAMPLES = 40


class World:
    """Six slots, two of them quick at decoding; a step takes what the slower side takes."""

    def __init__(self, num_rollout: int, noise: float = 0.0) -> None:
        self.slots = ["q/0", "q/1", "s/0", "s/1", "s/2", "s/3"]
        self.now_s, self.step, self.noise = 0.0, 0, noise
        self.random = random.Random(0)
        self.num_rollout = num_rollout
        self.events: list[dict[str, Any]] = []
        self.decisions: list[dict[str, Any]] = []
        for index, slot_id in enumerate(self.slots):
            self.give(slot_id, "rollout" if index < num_rollout else "train")

    def give(self, slot_id: str, owner: str) -> None:
        self.events.append(
            {
                "event": "slot",
                "time_s": self.now_s,
                "slot_id": slot_id,
                "slot_type": slot_id[0],
                "gang_id": slot_id,
                "owner": owner,
                "state": owner,
            }
        )

    def rate(self, generated: float, num_rollout: int) -> float:
        """Groups a second of a split, where so many tokens are generated for each that is kept."""
        batch = NUM_SAMPLES / num_rollout
        tokens_per_s = sum(batch / DECODE[slot_id[0]].at(batch) for slot_id in self.slots[:num_rollout])
        return min(tokens_per_s / generated, TRAIN_SLOT_RATE * (len(self.slots) - num_rollout) / TOKENS)

    def steps(self, number: int, generated: float = 200.0) -> None:
        for _ in range(number):
            self.step += 1
            noise = 1.0 + self.noise * self.random.uniform(-1.0, 1.0)
            begin_s, duration_s = self.now_s, NUM_GROUPS / self.rate(generated, self.num_rollout) * noise
            self.now_s += duration_s
            work_s = NUM_GROUPS * TOKENS / (TRAIN_SLOT_RATE * (len(self.slots) - self.num_rollout))
            self.events.append(
                {
                    "event": "step",
                    "step": self.step,
                    "begin_s": begin_s,
                    "work_begin_s": max(self.now_s - work_s, begin_s),
                    "work_end_s": max(self.now_s - work_s, begin_s) + work_s,
                    "time_s": self.now_s,
                    "num_groups": NUM_GROUPS,
                    "num_tokens": NUM_GROUPS * TOKENS,
                    "slot_ids": self.slots[self.num_rollout :],
                }
            )
            batch = NUM_SAMPLES / self.num_rollout
            speeds = {slot_id: batch / DECODE[slot_id[0]].at(batch) for slot_id in self.slots[: self.num_rollout]}
            for slot_id, speed in speeds.items():
                num_tokens = NUM_GROUPS * generated * speed / sum(speeds.values())
                self.events.append(
                    {
                        "event": "replica",
                        "slot_id": slot_id,
                        "begin_s": begin_s,
                        "time_s": self.now_s,
                        "busy_s": num_tokens / speed,
                        "running_s": batch * num_tokens / speed,
                        "num_tokens": num_tokens,
                    }
                )

    def move(self, by: int, *, now: float | None = None, after: float | None = None, target: int | None = None) -> None:
        """One slot more, or fewer, in rollout, two seconds later."""
        slot_id = self.slots[self.num_rollout if by > 0 else self.num_rollout - 1]
        action = "to_rollout" if by > 0 else "to_train"
        self.decisions.append(
            {
                "time_s": self.now_s,
                "step": self.step,
                "action": action,
                "slot_id": slot_id,
                "reason": "it pays",
                "num_train": len(self.slots) - self.num_rollout,
                "num_rollout": self.num_rollout,
                "rate_now": now,
                "rate_after": after,
                "gain": None,
                "cost": None,
                "horizon_s": None,
                "target_num_rollout": target,
            }
        )
        self.give(slot_id, "moving")
        begin_s = self.now_s
        self.now_s += 2.0
        self.num_rollout += by
        self.give(slot_id, action.removeprefix("to_"))
        self.events.append(
            {
                "event": "move",
                "time_s": self.now_s,
                "slot_id": slot_id,
                "action": action,
                "begin_s": begin_s,
                "trainer_pause_s": 2.0,
            }
        )
