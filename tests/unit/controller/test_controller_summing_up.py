"""What a run comes down to, where it ended before there was anything to divide by."""

from __future__ import annotations

from rlserve.controller.counters import Counters
from rlserve.controller.summing_up import sum_up
from rlserve.rollout.ledger import Ledger
from rlserve.tracking.summary import RunSummary


def summed_up(counters: Counters) -> RunSummary:
    return sum_up(
        counters,
        Ledger(prompts_per_step=4, max_staleness=1),
        None,
        learns_from_data=False,
        held_out_after=None,
        weight_version=0,
        seconds_total=12.0,
    )


def test_tokens_that_were_generated_before_the_loop_began_make_no_rate() -> None:
    summary = summed_up(Counters(num_generated_tokens=18_000))
    assert (summary.rollout_tokens_per_s, summary.trained_tokens_per_s) == (0.0, 0.0)


def test_rates_are_of_the_time_that_the_loop_ran() -> None:
    summary = summed_up(Counters(num_generated_tokens=18_000, num_trained_tokens=9_000, loop_s=3.0))
    assert (summary.rollout_tokens_per_s, summary.trained_tokens_per_s) == (6_000.0, 3_000.0)
