"""Draws the next tokens. What most requests ask for is one call of a kernel for all of them; draws that want
more (changed logits, or to be told more) take a second call, and only they pay for it.

Legend: R rows of logits, V vocabulary, B draws, A special ones among them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from rlserve.engine.device.transfer import to_device
from rlserve.engine.kernels.base import Draw, FinishedDraw, Kernels, SampledTokens, SamplingBatch
from rlserve.engine.requests.request import TopLogProbs
from rlserve.engine.sampling.logit_rules import adjust_logits
from rlserve.engine.sampling.support import pack_support
from rlserve.engine.sequences.prompt_scores import top_log_probs
from rlserve.engine.sequences.random_streams import uniforms
from rlserve.engine.sequences.table import SequenceTable


@dataclass(frozen=True, kw_only=True, eq=False)
class DrawDetails:
    """What a request wanted to be told of one draw."""

    place: int
    """Which of the B draws."""
    top_log_probs: TopLogProbs | None
    kept_support: bytes | None


def sampling_batch(table: SequenceTable, rows_B: NDArray[np.intp], logits_row_B: NDArray[np.int32]) -> SamplingBatch:
    """How to draw the next token of each of the given rows of the table, from the given row of logits."""
    return SamplingBatch(
        logits_row=logits_row_B,
        temperature=table.temperature[rows_B],
        top_k=table.top_k[rows_B],
        top_p=table.top_p[rows_B],
        min_p=table.min_p[rows_B],
        uniform=uniforms(table.stream_keys[rows_B], table.num_tokens[rows_B] - table.num_prompt_tokens[rows_B]),
    )


class Sampler:
    """Draws with the given kernels."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels

    def draw(
        self, logits_RV: torch.Tensor, table: SequenceTable, rows_B: NDArray[np.intp], logits_row_B: NDArray[np.int32]
    ) -> tuple[Draw, list[DrawDetails]]:
        """Draw the next token of each of the given rows of the table, from the given row of logits. Special draws
        are waited for, and all tokens of their rows must be known; others need not be."""
        batch = sampling_batch(table, rows_B, logits_row_B)
        is_special_B = table.is_special[rows_B]
        if not is_special_B.any():
            return self._kernels.draw(logits_RV, batch), []
        places_A = np.flatnonzero(is_special_B)
        special, details = self._sample_special(logits_RV, table, rows_B[places_A], batch.take(places_A), places_A)
        if len(places_A) == len(rows_B):
            return FinishedDraw(sampled=special, device=logits_RV.device), details
        others = np.flatnonzero(~is_special_B)
        plain = self._kernels.sample(logits_RV, batch.take(others))
        order = np.argsort(np.concatenate([others, places_A]))
        return FinishedDraw(sampled=_joined(plain, special, order), device=logits_RV.device), details

    def _sample_special(
        self,
        logits_RV: torch.Tensor,
        table: SequenceTable,
        rows_A: NDArray[np.intp],
        batch: SamplingBatch,
        places_A: NDArray[np.intp],
    ) -> tuple[SampledTokens, list[DrawDetails]]:
        samplings = [table.sequence(row).owner.request.sampling for row in rows_A.tolist()]
        rows_A1 = to_device(batch.logits_row.astype(np.int64), logits_RV.device).unsqueeze(1)
        logits_AV = logits_RV[rows_A1.squeeze(1)].float()
        log_total_A = logits_AV.logsumexp(dim=-1)
        num_top = max(sampling.num_top_log_probs for sampling in samplings)
        tops = top_log_probs(logits_AV.log_softmax(dim=-1), num_top) if num_top else []
        adjusted = np.flatnonzero([sampling.adjusts_logits for sampling in samplings])
        impossible = self._adjust(logits_AV, table, rows_A, adjusted)
        sampled = self._kernels.sample(
            logits_AV,
            replace(
                batch,
                logits_row=np.arange(batch.size, dtype=np.int32),
                wants_kept=any(sampling.kept_support for sampling in samplings),
            ),
        )
        # The kernel took the changed logits for raw ones.
        chosen_A1 = to_device(sampled.token_ids.astype(np.int64), logits_RV.device).unsqueeze(1)
        raw_A = logits_RV[rows_A1, chosen_A1].squeeze(1).float() - log_total_A
        sampled.log_probs[adjusted] = raw_A.cpu().numpy()[adjusted]
        sampled.log_probs[impossible] = np.nan  # what was drawn is no token, and ends the request
        kept_AV = sampled.kept
        details = [
            DrawDetails(
                place=int(place),
                top_log_probs=tops[index][: sampling.num_top_log_probs] if sampling.num_top_log_probs else None,
                kept_support=pack_support(kept_AV[index]) if sampling.kept_support and kept_AV is not None else None,
            )
            for index, (place, sampling) in enumerate(zip(places_A, samplings, strict=True))
            if sampling.tells_details
        ]
        return sampled, details

    @staticmethod
    def _adjust(
        logits_AV: torch.Tensor, table: SequenceTable, rows_A: NDArray[np.intp], adjusted: NDArray[np.intp]
    ) -> NDArray[np.intp]:
        """Change the logits at some places; returns those whose samples cannot go on."""
        if len(adjusted) == 0:
            return adjusted
        if len(adjusted) == len(logits_AV):
            return adjusted[adjust_logits(logits_AV, table, rows_A)]
        changed_AV = logits_AV[adjusted]
        impossible = adjusted[adjust_logits(changed_AV, table, rows_A[adjusted])]
        logits_AV[adjusted] = changed_AV
        return impossible


def _joined(first: SampledTokens, second: SampledTokens, order_B: NDArray[np.intp]) -> SampledTokens:
    return SampledTokens(
        token_ids=np.concatenate([first.token_ids, second.token_ids])[order_B],
        log_probs=np.concatenate([first.log_probs, second.log_probs])[order_B],
        behaviour_log_probs=np.concatenate([first.behaviour_log_probs, second.behaviour_log_probs])[order_B],
    )
