"""What the samples of a live request have gained, read between two steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rlserve.engine.requests.delta import SampleDelta, rest_of
from rlserve.engine.sequences.sequence import RequestState, Sequence, SequenceState
from rlserve.engine.sequences.table import SequenceTable


def new_tokens(owner: RequestState, table: SequenceTable, num_seen: Mapping[int, int]) -> tuple[SampleDelta, ...]:
    """What the samples in ``num_seen`` have beyond so many tokens, by index; those without news are left out."""
    live = {sequence.index: sequence for sequence in owner.sequences if sequence.state is not SequenceState.ENDED}
    return tuple(_news(owner, live, table, num_seen))


def _news(
    owner: RequestState, live: Mapping[int, Sequence], table: SequenceTable, num_seen: Mapping[int, int]
) -> Iterator[SampleDelta]:
    for index, start in sorted(num_seen.items()):
        if index in owner.outputs:
            yield rest_of(owner.outputs[index], start)
            continue
        sequence = live[index]
        tokens = sequence.history.after(start) if sequence.row < 0 else table.history(sequence.row, start)
        if len(tokens):
            end = start + len(tokens)
            yield SampleDelta(
                index=index,
                start=start,
                tokens=tokens,
                top_log_probs=tuple(sequence.top_log_probs[start:end]),
                kept_support=tuple(sequence.kept_support[start:end]),
            )
