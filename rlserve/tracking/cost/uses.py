"""What the time of a slot is used for."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Use(StrEnum):
    """Every moment of a slot that a run has is of one of these; docs/cost.md defines them."""

    TRAINING = "training"
    ROLLOUT = "rollout"
    IN_FLIGHT = "in_flight"
    STARTUP = "startup"
    IDLE = "idle"
    BUBBLE = "bubble"
    SWITCHING = "switching"
    WEIGHT_SYNC = "weight_sync"
    EVALUATION = "evaluation"
    CHECKPOINT = "checkpoint"
    RECOMPUTE = "recompute"
    LOST = "lost"
    DROPPED = "dropped"
    SURPLUS = "surplus"
    CLIENTS = "clients"


USEFUL = (Use.TRAINING, Use.ROLLOUT)
WASTE = tuple(use for use in Use if use not in (*USEFUL, Use.IN_FLIGHT, Use.CLIENTS))

MEANING: Mapping[Use, str] = {
    Use.TRAINING: "training steps that the run was built on",
    Use.ROLLOUT: "generating tokens that were trained on",
    Use.IN_FLIGHT: "not known yet: tokens that wait to be trained on, a step under way",
    Use.STARTUP: "until a slot has its first role; the end of the run",
    Use.IDLE: "nothing to do, for another reason than these",
    Use.BUBBLE: "waiting for the other role: trainers for a batch, replicas for prompts",
    Use.SWITCHING: "changes of role, and training that waited for them",
    Use.WEIGHT_SYNC: "weights being copied, waited for, or swapped in",
    Use.EVALUATION: "answering held-out prompts, and waiting for it",
    Use.CHECKPOINT: "copying the state, and waiting until it is written",
    Use.RECOMPUTE: "computing keys and values that had been there before",
    Use.LOST: "undone by a failure: broken steps, lost tokens, steps done again, replaced workers",
    Use.DROPPED: "generating tokens of prompt groups that were dropped",
    Use.SURPLUS: "generating tokens that no step needed any more",
    Use.CLIENTS: "generating tokens for clients of the run's server",
}
