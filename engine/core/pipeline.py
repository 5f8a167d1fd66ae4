"""One step through the device in two halves, so that the host need not wait in between.

``collect(launch(plan))`` is the synchronous engine. With overlapped scheduling there is one step in flight:

    host     plan 1  launch 1  plan 2  launch 2  ·····  collect 1  plan 3  launch 3  ·····  collect 2  plan 4 ...
    device                   ├───────── step 1 ────────┤├──────────── step 2 ──────────────┤├──── step 3 ...
                                                     │   ▲                               │   ▲
             the tokens drawn last, by row           └───┘                               └───┘

The tokens stay on the device (``runner/last_tokens.py``); copies of them go to the host, which reads them in
``collect``.

A plan needs no token of the step in flight, only to know that there is one: ``launch`` reserves its place in the row
table, ``collect`` fills it. What cannot do without the token (logit rules) collects first, and then plans; so does a
plan that could preempt, since a sample that has ended gives its blocks back.

A sample that turns out to have ended is in the next step already. It gets one token too many, which is dropped, since
the sample has left its row when that step is collected. A sample that ends by its length is never in it: that is known
before.

Its blocks are free from then on, while the device may still write that token's key and value to them. That is safe,
because all steps go through one stream in the order of their launch: whoever gets the blocks writes to them, copies
into them and reads from them behind that write. It also hits no block that has a name in the prefix cache: the token
goes behind the last full block, to one that this sample alone holds.

Legend: B tokens drawn in a step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlserve.engine.kernels.base import Draw, SampledTokens
from rlserve.engine.runner.model_runner import ModelRunner
from rlserve.engine.sampling.sampler import DrawDetails
from rlserve.engine.scheduling.scheduled_step import ScheduledStep
from rlserve.engine.scheduling.scheduler import Scheduler
from rlserve.engine.sequences.sequence import Sequence
from rlserve.engine.sequences.table import SequenceTable
from rlserve.engine.stats.step_profile import profiled


@dataclass(frozen=True, kw_only=True, eq=False)
class InFlightStep:
    """What was launched and is not collected: who gets which draw, whatever happens to the rows meanwhile."""

    rows_B: NDArray[np.intp]
    """The decoding rows, then those whose prefill it completes."""
    num_decoding: int
    num_departures: int
    """How often a sequence had left its row when it was launched."""
    positions_B: NDArray[np.int32]
    """Of the tokens in their sequences."""
    draw: Draw
    details: list[DrawDetails]


@dataclass(frozen=True, kw_only=True, eq=False)
class CollectedStep:
    """The tokens of a step, of those samples that had not ended before."""

    rows_B: NDArray[np.intp]
    sampled: SampledTokens
    num_dropped: int
    """Tokens drawn for samples that had."""


class Pipeline:
    """Launches steps and collects them, in the same order."""

    def __init__(self, *, runner: ModelRunner, table: SequenceTable, scheduler: Scheduler) -> None:
        self._runner = runner
        self._table = table
        self._scheduler = scheduler

    def launch(self, step: ScheduledStep, weight_version: int) -> InFlightStep | None:
        """Have a step that is not empty computed, and its tokens drawn; None if there are none to draw."""
        with profiled("compute"):
            logits_RV = self._runner.compute(step, self._table)
        self._score_prompts(step)
        self._scheduler.complete_chunks(step)
        rows_B, logits_row_B = self._rows_to_sample(step)
        if len(rows_B) == 0:
            return None
        with profiled("draw"):
            draw, details = self._runner.draw(logits_RV, self._table, rows_B, logits_row_B)
        return InFlightStep(
            rows_B=rows_B,
            num_decoding=len(step.decode_rows),
            num_departures=self._table.num_departures,
            positions_B=self._table.reserve(rows_B, weight_version),
            draw=draw,
            details=details,
        )

    def collect(self, step: InFlightStep) -> CollectedStep:
        """Wait for the tokens of a step, and write them into the sequence table."""
        sampled = step.draw.read()
        rows_B, positions_B, num_decoding = step.rows_B, step.positions_B, step.num_decoding
        details = step.details
        if self._table.num_departures > step.num_departures:
            is_live_B = self._table.last_departure[rows_B] <= step.num_departures
            rows_B, positions_B, sampled = rows_B[is_live_B], positions_B[is_live_B], _some(sampled, is_live_B)
            num_decoding = int(is_live_B[:num_decoding].sum())
            details = [detail for detail in details if is_live_B[detail.place]]
        for detail in details:
            _keep_detail(self._table.sequence(int(step.rows_B[detail.place])), detail)
        self._scheduler.complete_decoding(rows_B[:num_decoding], positions_B[:num_decoding])
        self._table.fill(rows_B, positions_B, sampled.token_ids, sampled.log_probs, sampled.behaviour_log_probs)
        return CollectedStep(rows_B=rows_B, sampled=sampled, num_dropped=len(step.rows_B) - len(rows_B))

    def _score_prompts(self, step: ScheduledStep) -> None:
        """Note the log-probabilities of the prompts that want them and have tokens in the step."""
        first_token = len(step.decode_rows)
        for chunk in step.chunks:
            scores = chunk.sequence.owner.prompt_scores
            if scores is not None:
                self._runner.score_prompt(scores, chunk.start, first_token, chunk.end)
            first_token += chunk.end - chunk.start

    def _rows_to_sample(self, step: ScheduledStep) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
        """Rows that get a token, and the row of logits of each; a leader's followers share its logits."""
        rows, logits_rows = step.decode_rows, np.arange(len(step.decode_rows), dtype=np.int32)
        leaders = [chunk.sequence for chunk in step.chunks if chunk.completes]
        if not leaders:
            return rows, logits_rows
        logits_row_of = {leader: logits_row for logits_row, leader in enumerate(leaders, start=len(rows))}
        leader_of = {leader: leader for leader in leaders} | self._scheduler.release_followers(leaders)
        new_logits_rows = [logits_row_of[leader] for leader in leader_of.values()]
        return (
            np.concatenate([rows, np.array([sequence.row for sequence in leader_of], dtype=np.intp)]),
            np.concatenate([logits_rows, np.array(new_logits_rows, dtype=np.int32)]),
        )


def _keep_detail(sequence: Sequence, detail: DrawDetails) -> None:
    if detail.top_log_probs is not None:
        sequence.top_log_probs.append(detail.top_log_probs)
    if detail.kept_support is not None:
        sequence.kept_support.append(detail.kept_support)


def _some(sampled: SampledTokens, is_wanted_B: NDArray[np.bool_]) -> SampledTokens:
    return SampledTokens(
        token_ids=sampled.token_ids[is_wanted_B],
        log_probs=sampled.log_probs[is_wanted_B],
        behaviour_log_probs=sampled.behaviour_log_probs[is_wanted_B],
    )
