"""Draws the next tokens. What most requests ask for is one call of a kernel for all of them; draws that want
more (changed logits, or to be told more) take a second call, and only they pay for it.

Legend: R rows of logits, V vocabulary, B draws, A special ones among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from rlserve.engine.device.transfer import to_device
from rlserve.engine.kernels.base import Draw, FinishedDraw, Kernels, SampledTokens, SamplingBatch
from rlserve.engine.requests.request import SamplingParams, TopLogProbs
from rlserve.engine.sampling.grammar_masks import GrammarMasks, grammar_masks
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
        sequences = [table.sequence(row) for row in rows_A.tolist()]
        samplings = [sequence.owner.request.sampling for sequence in sequences]
        masks = grammar_masks(table, sequences)
        batch = replace(
            batch,
            wants_kept=any(sampling.kept_support for sampling in samplings),
            allowed=None if masks is None else masks.allowed,
        )
        adjusted = np.flatnonzero([sampling.adjusts_logits for sampling in samplings])
        if len(adjusted):
            sampled = self._sample_adjusted(logits_RV, table, rows_A, batch, masks, adjusted)
        else:
            sampled = self._kernels.sample(logits_RV, batch)
        if masks is not None:
            sampled.log_probs[masks.impossible()] = np.nan  # what was drawn is no token, and ends the request
        tops, kept_AV = _top_log_probs(logits_RV, batch, samplings, sampled), sampled.kept
        details = [
            DrawDetails(
                place=int(place),
                top_log_probs=tops.get(index),
                kept_support=pack_support(kept_AV[index]) if sampling.kept_support and kept_AV is not None else None,
            )
            for index, (place, sampling) in enumerate(zip(places_A, samplings, strict=True))
            if sampling.tells_details
        ]
        return sampled, details

    def _sample_adjusted(
        self,
        logits_RV: torch.Tensor,
        table: SequenceTable,
        rows_A: NDArray[np.intp],
        batch: SamplingBatch,
        masks: GrammarMasks | None,
        adjusted: NDArray[np.intp],
    ) -> SampledTokens:
        """Draw from logits that are changed at some places first."""
        logits_row_A = to_device(batch.logits_row.astype(np.int64), logits_RV.device)
        logits_AV = logits_RV[logits_row_A].float()
        log_total_A = logits_AV.logsumexp(dim=-1)
        changed_NV = logits_AV[adjusted]
        must_end_N = np.zeros(len(adjusted), dtype=np.bool_) if masks is None else masks.must_end[adjusted]
        adjust_logits(changed_NV, table, rows_A[adjusted], must_end_N)
        if masks is not None:
            masks.note_dead_ends(changed_NV, adjusted)
        logits_AV[adjusted] = changed_NV
        sampled = self._kernels.sample(logits_AV, replace(batch, logits_row=np.arange(batch.size, dtype=np.int32)))
        # The kernel took the changed logits for raw ones.
        chosen_A = to_device(sampled.token_ids.astype(np.int64), logits_RV.device)
        raw_A = logits_RV[logits_row_A, chosen_A].float() - log_total_A
        sampled.log_probs[adjusted] = raw_A.cpu().numpy()[adjusted]
        return sampled


def _top_log_probs(
    logits_RV: torch.Tensor, batch: SamplingBatch, samplings: Sequence[SamplingParams], sampled: SampledTokens
) -> dict[int, TopLogProbs]:
    """Raw, of those of the A draws that want them: of the likeliest tokens, or of those that are named."""
    places_of: dict[int, list[int]] = {}
    for index, sampling in enumerate(samplings):
        if sampling.tells_top_log_probs:
            places_of.setdefault(sampling.num_top_log_probs, []).append(index)
    told: dict[int, TopLogProbs] = {}
    for num_top, places in places_of.items():  # apart: one that wants the whole vocabulary must not make all pay for it
        rows = to_device(batch.logits_row[places].astype(np.int64), logits_RV.device)
        log_probs_NV = logits_RV[rows].float().log_softmax(dim=-1)
        if num_top:
            told.update(zip(places, top_log_probs(log_probs_NV, num_top), strict=True))
            continue
        for place, log_probs_V in zip(places, log_probs_NV, strict=True):
            token_ids = list(dict.fromkeys((*samplings[place].log_prob_token_ids, int(sampled.token_ids[place]))))
            named = log_probs_V[to_device(np.array(token_ids, dtype=np.int64), logits_RV.device)]
            told[place] = tuple(zip(token_ids, named.tolist(), strict=True))
    return told


def _joined(first: SampledTokens, second: SampledTokens, order_B: NDArray[np.intp]) -> SampledTokens:
    return SampledTokens(
        token_ids=np.concatenate([first.token_ids, second.token_ids])[order_B],
        log_probs=np.concatenate([first.log_probs, second.log_probs])[order_B],
        behaviour_log_probs=np.concatenate([first.behaviour_log_probs, second.behaviour_log_probs])[order_B],
    )
