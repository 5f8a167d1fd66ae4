"""Keeps the logits of samples that have a grammar to what it allows next.

Legend: A draws whose logits are changed, V vocabulary, W words of 32 bits that hold V bits.
"""

from __future__ import annotations

from collections.abc import Sequence as Sequences

import numpy as np
import torch
from numpy.typing import NDArray

from rlserve.engine.device.transfer import to_device
from rlserve.engine.grammars.matcher import ALL_ALLOWED, masks_of
from rlserve.engine.sequences.sequence import Sequence
from rlserve.engine.sequences.table import SequenceTable

_BITS = torch.tensor([1 << bit for bit in range(31)] + [-(1 << 31)], dtype=torch.int32)


def apply_grammars(
    logits_AV: torch.Tensor, table: SequenceTable, sequences_A: Sequences[Sequence]
) -> NDArray[np.bool_]:
    """Set the logits of the tokens that the grammars of some samples do not allow to minus infinity.

    Returns:
        [A] whether the sample has a grammar that allows nothing but its end.
    """
    must_end_A = np.zeros(len(sequences_A), dtype=np.bool_)
    places = [place for place, sequence in enumerate(sequences_A) if sequence.owner.grammar is not None]
    if not places:
        return must_end_A
    matchers = []
    for sequence in (sequences_A[place] for place in places):
        if sequence.grammar_matcher is None and sequence.owner.grammar is not None:
            sequence.grammar_matcher = sequence.owner.grammar.matcher()
        assert sequence.grammar_matcher is not None
        sequence.grammar_matcher.follow(table.generated(sequence.row))
        matchers.append(sequence.grammar_matcher)
    masks, must_end_A[places] = masks_of(matchers)
    masks_AW = np.full((len(sequences_A), masks.shape[1]), ALL_ALLOWED)
    masks_AW[places] = masks
    logits_AV.masked_fill_(_forbidden(masks_AW, logits_AV.shape[1], logits_AV.device), -torch.inf)
    return must_end_A


def note_impossible(logits_AV: torch.Tensor, sequences_A: Sequences[Sequence]) -> NDArray[np.bool_]:
    """[A] whether a sample has a grammar and cannot go on: its matcher has the reason. All rules are applied."""
    impossible_A = np.zeros(len(sequences_A), dtype=np.bool_)
    places = [place for place, sequence in enumerate(sequences_A) if sequence.grammar_matcher is not None]
    if not places:
        return impossible_A
    is_empty_A = (logits_AV.amax(dim=1) == -torch.inf).tolist()
    for place in places:
        matcher = sequences_A[place].grammar_matcher
        assert matcher is not None
        if is_empty_A[place] and matcher.problem is None:
            matcher.problem = "no token is left to draw: the structured output and the other rules forbid all"
        impossible_A[place] = matcher.problem is not None
    return impossible_A


def _forbidden(masks_AW: NDArray[np.int32], vocab_size: int, device: torch.device) -> torch.Tensor:
    """[A, V] bool. A device gets the words and takes the bits out of them itself."""
    if device.type == "cpu":
        bits_AV = np.unpackbits(~masks_AW.view(np.uint8), axis=1, count=vocab_size, bitorder="little")
        return torch.from_numpy(bits_AV.view(np.bool_))
    bits_AW32 = to_device(masks_AW, device).unsqueeze(-1).bitwise_and(_BITS.to(device))
    return bits_AW32.eq(0).flatten(1)[:, :vocab_size]
