"""A rank takes its place in a new group: agrees on the step, and gets what it should hold from those who have it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from rlserve.errors import StateLostError
from rlserve.trainers.backends.deepspeed.held_state import PARAMETERS, VECTORS, HeldState, Pieces, Progress
from rlserve.trainers.backends.deepspeed.layout import ParameterLayout
from rlserve.trainers.base import Membership, Traffic
from rlserve.trainers.elastic.base import Group
from rlserve.trainers.elastic.exchange import carry_out, exchange_notes
from rlserve.trainers.elastic.intervals import Interval, Intervals
from rlserve.trainers.elastic.standing import NOTHING
from rlserve.trainers.elastic.transfers import Transfer, missing, plan_transfers, traffic_of


@dataclass(frozen=True, kw_only=True)
class _Standing:
    """What one rank holds, in words."""

    progress: Progress
    elements: Mapping[str, Intervals]
    """By vector; nothing at all where the rank has no state."""

    @classmethod
    def of(cls, held: HeldState | None) -> _Standing:
        """Of this rank."""
        if held is None:
            return cls(progress=Progress(num_steps=NOTHING), elements={})
        elements = {vector: pieces.elements for vector, pieces in held.vectors.items()}
        return cls(progress=held.progress, elements=elements)

    @classmethod
    def from_note(cls, note: Mapping[str, Any]) -> _Standing:
        """Back from what ``asdict`` made, and JSON knows."""
        elements = {vector: tuple(Interval(*each) for each in found) for vector, found in note["elements"].items()}
        return cls(progress=Progress(**note["progress"]), elements=elements)

    def has(self, vector: str, num_steps: int) -> Intervals:
        """Elements as they are after so many steps."""
        return self.elements.get(vector, ()) if self.progress.num_steps == num_steps else ()


def reshard(
    held: HeldState | None,
    layout: ParameterLayout,
    group: Group,
    membership: Membership,
    *,
    zero_stage: int,
    device: torch.device,
) -> tuple[HeldState, Traffic]:
    """What this rank holds in a new group, and what all send for that. All ranks call this together; what they held
    before stays as it is.

    Raises:
        StateLostError: some part of the state is on no rank; on all ranks.
        WorkerFailedError: a rank was lost.
    """
    notes = exchange_notes(group, asdict(_Standing.of(held)), device)
    standings = [_Standing.from_note(note) for note in notes]
    common = _common_progress(standings, layout, membership, zero_stage)
    if held is not None and held.progress.num_steps != common.num_steps:
        held = None
    num_holders = membership.num_ranks - membership.num_leaving
    vectors, traffic = {}, Traffic()
    for vector in VECTORS if common.num_updates else (PARAMETERS,):
        holding = layout.parameters_of if vector == PARAMETERS else layout.moments_of
        wanted = [holding(rank, num_holders, zero_stage) if rank < num_holders else () for rank in range(len(notes))]
        present = [standing.has(vector, common.num_steps) for standing in standings]
        old = Pieces() if held is None else held.vectors.get(vector, Pieces())
        plan = plan_transfers(present, wanted)
        traffic += traffic_of(plan, present, wanted)
        vectors[vector] = _received(old, group, plan, wanted[group.rank], device)
    exchange_notes(group, "received", device)
    return HeldState(progress=common, vectors=vectors), traffic


def _common_progress(
    standings: Sequence[_Standing], layout: ParameterLayout, membership: Membership, zero_stage: int
) -> Progress:
    """The furthest that all can go on from: of which every part is held."""
    least_lost = 1.0
    for standing in sorted(standings, key=lambda each: each.progress.num_steps, reverse=True):
        if standing.progress.num_steps == NOTHING:
            break
        wanted = {PARAMETERS: layout.num_elements}
        if standing.progress.num_updates:
            wanted |= dict.fromkeys(VECTORS[1:], layout.num_trained_elements)
        lost = max(
            _share_lost([each.has(vector, standing.progress.num_steps) for each in standings], num_elements)
            for vector, num_elements in wanted.items()
        )
        if not lost:
            return standing.progress
        least_lost = min(least_lost, lost)
    raise StateLostError(
        f"trainer group {membership.generation}: no trainer is left that holds {least_lost:.0%} of the state, which "
        f"trainer.zero_stage={zero_stage} keeps on one rank alone"
    )


def _share_lost(present: Sequence[Intervals], num_elements: int) -> float:
    lost = missing(present, [(Interval(0, num_elements),)])
    return sum(part.num_elements for part in lost) / num_elements


def _received(old: Pieces, group: Group, plan: Sequence[Transfer], wanted: Intervals, device: torch.device) -> Pieces:
    """A vector's elements that this rank is to hold, from itself and from others."""
    new = Pieces.empty(wanted)
    for elements, values in old.items():
        new.write(elements, values)

    def write(elements: Interval, values: Tensor) -> None:
        new.write(elements, values.cpu())

    carry_out(group, plan, lambda elements: old.read(elements).to(device), write, device=device)
    return new
