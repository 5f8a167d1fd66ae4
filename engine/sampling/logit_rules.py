"""What a request forbids, favours and penalises: changes of the logits before temperature.

The definitions and their order are vLLM's. Requests that ask for none of it never come here.

Legend: A draws whose logits are changed, V vocabulary, L longest of their sequences in tokens.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from rlserve.engine.device.transfer import to_device
from rlserve.engine.requests.request import SamplingParams
from rlserve.engine.sequences.sequence import RequestState
from rlserve.engine.sequences.table import SequenceTable


def adjust_logits(
    logits_AV: torch.Tensor, table: SequenceTable, rows_A: NDArray[np.intp], must_end_A: NDArray[np.bool_]
) -> None:
    """Change the float32 logits of the next token of each of the given rows, in place. ``must_end_A``: a grammar allows
    nothing but the end, which is then not held back."""
    owners = [table.sequence(row).owner for row in rows_A.tolist()]
    samplings = [owner.request.sampling for owner in owners]
    _add_offsets(logits_AV, owners)
    _end_no_bad_word(logits_AV, owners, table, rows_A)
    _hold_back_stop_tokens(logits_AV, samplings, table, rows_A, must_end_A)
    penalised = np.flatnonzero([sampling.penalises for sampling in samplings])
    if len(penalised):
        places = to_device(penalised, logits_AV.device)
        logits_AV[places] = _penalise(
            logits_AV[places], [samplings[place] for place in penalised], table, rows_A[penalised]
        )
    _end_thinking(logits_AV, samplings, table, rows_A)


def _add_offsets(logits_AV: torch.Tensor, owners: list[RequestState]) -> None:
    """Allowed and bad tokens, and biases: what does not change from token to token is made once a request."""
    for owner in owners:
        if owner.request.sampling.has_logit_offsets and owner.logit_offsets is None:
            owner.logit_offsets = _offsets(owner, logits_AV.shape[1]).to(logits_AV.device)
    with_offsets = [place for place, owner in enumerate(owners) if owner.logit_offsets is not None]
    if with_offsets:
        offsets = [owner.logit_offsets for owner in owners if owner.logit_offsets is not None]
        logits_AV.index_add_(0, torch.tensor(with_offsets, device=logits_AV.device), torch.stack(offsets))


def _offsets(owner: RequestState, vocab_size: int) -> torch.Tensor:
    """[V] what is added to the logits; minus infinity forbids."""
    sampling = owner.request.sampling
    offsets_V = torch.zeros(vocab_size)
    if sampling.allowed_token_ids:
        offsets_V.fill_(-torch.inf)
        offsets_V[list(sampling.allowed_token_ids)] = 0.0
    offsets_V[list(sampling.bad_token_ids)] = -torch.inf
    if owner.bad_words is not None:
        offsets_V[owner.bad_words.token_ids] = -torch.inf
    for token_id, bias in sampling.logit_bias.items():
        offsets_V[token_id] += bias
    return offsets_V


def _end_no_bad_word(
    logits_AV: torch.Tensor, owners: list[RequestState], table: SequenceTable, rows_A: NDArray[np.intp]
) -> None:
    """Forbid what would complete a bad word of several tokens."""
    pairs = [
        (place, token_id)
        for place, (owner, row) in enumerate(zip(owners, rows_A.tolist(), strict=True))
        if owner.bad_words is not None
        for token_id in owner.bad_words.ending_after(table.generated(row))
    ]
    if pairs:
        places, token_ids = torch.tensor(pairs, device=logits_AV.device).unbind(1)
        logits_AV[places, token_ids] = -torch.inf


def _hold_back_stop_tokens(
    logits_AV: torch.Tensor,
    samplings: list[SamplingParams],
    table: SequenceTable,
    rows_A: NDArray[np.intp],
    must_end_A: NDArray[np.bool_],
) -> None:
    """Forbid what would end a sample that has fewer than ``min_tokens``, unless its grammar has nothing else."""
    num_generated_A = table.num_tokens[rows_A] - table.num_prompt_tokens[rows_A]
    too_short_A = num_generated_A < np.array([sampling.min_tokens for sampling in samplings])
    stop_token_ids = table.stop_token_ids[rows_A]
    places, columns = np.nonzero((stop_token_ids >= 0) & (too_short_A & ~must_end_A)[:, None])
    if len(places):
        device = logits_AV.device
        token_ids = stop_token_ids[places, columns].astype(np.int64)
        logits_AV[to_device(places, device), to_device(token_ids, device)] = -torch.inf


def _end_thinking(
    logits_AV: torch.Tensor, samplings: list[SamplingParams], table: SequenceTable, rows_A: NDArray[np.intp]
) -> None:
    """Allow nothing but the closing token to samples that have thought for as long as they may."""
    for place, (sampling, row) in enumerate(zip(samplings, rows_A.tolist(), strict=True)):
        budget = sampling.thinking_budget
        if budget is not None and budget.is_spent(table.sequence(row).owner.prompt, table.generated(row)):
            logits_AV[place].fill_(-torch.inf)
            logits_AV[place, budget.closing_token_id] = 0.0


def _penalise(
    logits_AV: torch.Tensor, samplings: list[SamplingParams], table: SequenceTable, rows_A: NDArray[np.intp]
) -> torch.Tensor:
    """Repetition over prompt and generated tokens, presence and frequency over generated ones."""

    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=logits_AV.device).unsqueeze(1)

    repetition_A1 = column([sampling.repetition_penalty for sampling in samplings])
    presence_A1 = column([sampling.presence_penalty for sampling in samplings])
    frequency_A1 = column([sampling.frequency_penalty for sampling in samplings])
    seen_AV, generated_AV = _token_counts(table, rows_A, logits_AV)
    repeated_AV = torch.where(logits_AV > 0, logits_AV / repetition_A1, logits_AV * repetition_A1)
    logits_AV = torch.where(seen_AV > 0, repeated_AV, logits_AV)
    return logits_AV - frequency_A1 * generated_AV - presence_A1 * (generated_AV > 0)


def _token_counts(
    table: SequenceTable, rows_A: NDArray[np.intp], logits_AV: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """[A, V] how often each token stands in prompt and answer, and in the answer alone. What the table holds
    behind the end of a shorter sequence is of an earlier one: some token, which counts 0 times."""
    num_tokens_A1, num_prompt_A1 = table.num_tokens[rows_A, None], table.num_prompt_tokens[rows_A, None]
    length, device = int(num_tokens_A1.max()), logits_AV.device
    positions_L = np.arange(length)
    token_ids_AL = to_device(table.token_ids[rows_A, :length].astype(np.int64), device)
    is_token_AL = to_device((positions_L < num_tokens_A1).astype(np.float32), device)
    is_generated_AL = is_token_AL * to_device((positions_L >= num_prompt_A1).astype(np.float32), device)
    zeros_AV = torch.zeros_like(logits_AV)
    return zeros_AV.scatter_add(1, token_ids_AL, is_token_AL), zeros_AV.scatter_add(1, token_ids_AL, is_generated_AL)
