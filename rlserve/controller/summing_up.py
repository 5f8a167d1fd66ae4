"""What a run comes down to, from its counters and its ledger."""

from __future__ import annotations

import math
from dataclasses import asdict

from rlserve.controller.counters import Counters
from rlserve.pool.pacing.verdict import PacingVerdict
from rlserve.rollout.ledger import Ledger
from rlserve.tracking.summary import RunSummary


def sum_up(
    counters: Counters,
    ledger: Ledger,
    pacing: PacingVerdict | None,
    *,
    learns_from_data: bool,
    held_out_after: float | None,
    weight_version: int,
    seconds_total: float,
) -> RunSummary:
    """The summary of a run, however it ended; ``counters`` with what this process has added."""
    # Before the first step, as where the held-out score never ends, there are tokens and no time of the loop.
    loop_s = counters.loop_s or math.inf
    return RunSummary(
        held_out_before=counters.held_out_before,
        held_out_after=held_out_after,
        num_steps=counters.num_steps,
        groups_admitted=ledger.num_admitted,
        groups_trained=ledger.num_trained,
        groups_dropped=ledger.num_dropped,
        moves_to_rollout=counters.moves_to_rollout,
        moves_to_train=counters.moves_to_train,
        engine_restarts=counters.engine_restarts,
        worker_failures=counters.worker_failures,
        final_weight_version=weight_version,
        seconds_to_first_step=counters.seconds_to_first_step,
        seconds_total=seconds_total,
        rollout_tokens_per_s=counters.num_generated_tokens / loop_s,
        trained_tokens_per_s=counters.num_trained_tokens / loop_s,
        max_staleness=counters.max_staleness,
        mean_abs_log_prob_difference=(
            counters.sum_abs_log_prob_difference / counters.num_steps
            if counters.num_steps and not learns_from_data
            else None
        ),
        learns_from_data=learns_from_data,
        loop_s=counters.loop_s,
        overrun_share=None if pacing is None else pacing.overrun_share,
        host_was_bottleneck=None if pacing is None else pacing.host_was_bottleneck,
        paced_activities={} if pacing is None else {name: asdict(each) for name, each in pacing.activities.items()},
    )
