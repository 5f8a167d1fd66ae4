"""When nothing moves: how long that may last, what moving is, and who owes what."""

from __future__ import annotations

from rlserve.config.tree import RunConfig
from rlserve.controller.reallocation import Reallocation
from rlserve.controller.replicas import Replicas
from rlserve.controller.training_loop import TrainingLoop
from rlserve.rollout.ledger import LIVE_STATES, Ledger


def stall_timeout_s(config: RunConfig) -> float:
    """Longest that nothing at all moves while every wait keeps its own deadline."""
    rollout, pool = config.rollout, config.pool
    return rollout.request_timeout_s + config.reward.timeout_s + pool.worker_start_timeout_s + pool.switch_timeout_s


def progress(training: TrainingLoop, ledger: Ledger, replicas: Replicas, reallocation: Reallocation) -> object:
    """Something else whenever the run got on. What the training loop does besides waiting for a batch has deadlines of
    its own, and counts as getting on."""
    if not training.waiting:
        return object()
    changes = tuple(record.changed_s for record in ledger.live())
    return changes, replicas.num_generated_tokens, len(reallocation.table.history)


def situation(ledger: Ledger, reallocation: Reallocation) -> str:
    """Who owes what."""
    groups = ", ".join(f"{ledger.count(state)} {state}" for state in LIVE_STATES)
    slots = ", ".join(f"{slot_id} {reallocation.table.state(slot_id)}" for slot_id in reallocation.table.slot_ids)
    return f"prompt groups: {groups}; slots: {slots}"
