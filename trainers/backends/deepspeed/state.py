"""What a checkpoint holds of a rank's state: the tensors, names and files of the backend ``torch``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from rlserve.trainers.backends.deepspeed.held_state import PARAMETERS, VECTORS, HeldState, Progress, filled
from rlserve.trainers.backends.deepspeed.layout import ParameterLayout, Place
from rlserve.trainers.backends.pytorch.saved_state import SavedProgress, SavedState, SavedTensor, check_fits
from rlserve.trainers.backends.pytorch.state import MOMENTS
from rlserve.trainers.backends.pytorch.state_copy import PolicyCopy
from rlserve.trainers.backends.pytorch.state_files import Part, file_name, parts_of_rank_0, write_index
from rlserve.trainers.base import StateCopy
from rlserve.trainers.elastic.base import Group
from rlserve.trainers.elastic.exchange import gather_shards
from rlserve.trainers.elastic.intervals import Interval, Intervals, intersection

_VECTOR_OF_PREFIX = {"": PARAMETERS, **MOMENTS}


def load_held(
    saved: SavedState, layout: ParameterLayout, group: Group, zero_stage: int, carried: Iterable[str]
) -> HeldState:
    """A rank's part of a saved state; nothing else of it is read. ``carried`` names what the algorithm carries.

    Raises:
        WeightsRefusedError: names, shapes or types differ.
    """
    check_fits({tensor.name: tensor for tensor in _saved_tensors(layout, carried)}, saved.tensors)
    found = SavedProgress.read(saved, carried)
    prefixes = {vector: prefix for prefix, vector in _VECTOR_OF_PREFIX.items()}

    def read(vector: str, elements: Interval) -> Tensor:
        return torch.cat(
            [
                saved.read(f"{prefixes[vector]}{place.network}.{place.name}", _within(place, common))
                for place in _places(layout)
                if (common := intersection(place.elements, elements)).num_elements
            ]
        )

    moments = layout.moments_of(group.rank, group.num_ranks, zero_stage)
    wanted = dict.fromkeys(VECTORS if found.num_updates else (), moments) | {
        PARAMETERS: layout.parameters_of(group.rank, group.num_ranks, zero_stage)
    }
    progress = Progress(num_steps=found.num_steps, num_updates=found.num_updates, carried=found.carried)
    return HeldState(progress=progress, vectors=filled(wanted, read))


def gathered_state(
    held: HeldState, layout: ParameterLayout, group: Group, zero_stage: int, device: torch.device
) -> dict[str, Tensor]:
    """Every tensor of a saved state, whole. All ranks call this together."""
    found = {
        name: _gathered(
            held,
            prefix,
            place,
            group,
            [layout.written_by(rank, group.num_ranks, zero_stage, prefix) for rank in range(group.num_ranks)],
            device,
        )
        for name, prefix, place in _named_places(layout)
    }
    return found | held.progress.saved().tensors()


class ShardCopy(StateCopy):
    """Of one rank of a group; see ``StateCopy``."""

    def __init__(
        self,
        held: HeldState,
        layout: ParameterLayout,
        group: Group,
        zero_stage: int,
        policy: PolicyCopy | None,
    ) -> None:
        """``held`` and ``policy`` are copies; the latter is what this rank writes of the policy."""
        self._layout, self._zero_stage = layout, zero_stage
        self._rank, self._num_ranks = group.rank, group.num_ranks
        own = {prefix: self._written_by(self._rank, prefix) for prefix in _VECTOR_OF_PREFIX}
        self._tensors = {
            name: torch.cat([_read(held, prefix, elements) for elements in parts])
            for name, prefix, place in _named_places(layout)
            if (parts := _common(place, own[prefix]))
        }
        self._policy = policy
        self._carried = tuple(held.progress.carried)
        self._progress = held.progress.saved().tensors()
        if self._rank == 0:
            self._tensors |= self._progress

    def write(self, folder: Path, *, policy_folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self._tensors, folder / file_name(self._rank, self._num_ranks))
        if self._rank == 0:
            write_index(folder, _saved_tensors(self._layout, self._carried), self._all_parts())
        if self._policy is not None:
            self._policy.write(policy_folder)

    def _written_by(self, rank: int, prefix: str) -> Intervals:
        return self._layout.written_by(rank, self._num_ranks, self._zero_stage, prefix)

    def _all_parts(self) -> dict[str, list[Part]]:
        """Which elements of each saved tensor each rank writes: the same on all ranks."""
        parts = parts_of_rank_0(self._progress, self._num_ranks)
        for rank in range(self._num_ranks):
            written = {prefix: self._written_by(rank, prefix) for prefix in _VECTOR_OF_PREFIX}
            for name, prefix, place in _named_places(self._layout):
                for common in _common(place, written[prefix]):
                    part = Part(file=file_name(rank, self._num_ranks), elements=_within(place, common))
                    parts.setdefault(name, []).append(part)
        return parts


def _places(layout: ParameterLayout) -> Iterator[Place]:
    for places in layout.places.values():
        yield from places.values()


def _named_places(layout: ParameterLayout) -> Iterator[tuple[str, str, Place]]:
    """Name in a saved state, prefix, and place of all tensors but the counters."""
    for prefix in _VECTOR_OF_PREFIX:
        for place in _places(layout):
            if not prefix or place.network in layout.trained:
                yield f"{prefix}{place.network}.{place.name}", prefix, place


def _saved_tensors(layout: ParameterLayout, carried: Iterable[str]) -> list[SavedTensor]:
    """The same on any number of ranks."""
    return [
        *(SavedTensor(name=name, shape=place.shape, dtype=torch.float32) for name, _, place in _named_places(layout)),
        *SavedProgress.declared(carried),
    ]


def _common(place: Place, elements: Intervals) -> list[Interval]:
    """What of some elements is of a parameter: one piece at most, as ZeRO cuts them."""
    found = [common for each in elements if (common := intersection(place.elements, each)).num_elements]
    assert len(found) <= 1
    return found


def _part_of(place: Place, elements: Intervals) -> Interval:
    """As ``_common``; empty where it is nothing."""
    return next(iter(_common(place, elements)), Interval(place.elements.first, place.elements.first))


def _within(place: Place, elements: Interval) -> Interval:
    """Elements of the vector, as those of one parameter."""
    return Interval(elements.first - place.elements.first, elements.end - place.elements.first)


def _read(held: HeldState, prefix: str, elements: Interval) -> Tensor:
    """Moments are zero before the first update."""
    vector = _VECTOR_OF_PREFIX[prefix]
    return held.vectors[vector].read(elements) if vector in held.vectors else torch.zeros(elements.num_elements)


def _gathered(
    held: HeldState, prefix: str, place: Place, group: Group, parts: Sequence[Intervals], device: torch.device
) -> Tensor:
    shards = [_within(place, _part_of(place, each)) for each in parts]
    whole = torch.empty(place.elements.num_elements, device=device)
    own = shards[group.rank]
    if own.num_elements:
        first = place.elements.first
        whole[own.elements] = _read(held, prefix, Interval(first + own.first, first + own.end)).to(device)
    if group.num_ranks > 1:
        gather_shards(group, whole, shards)
    return whole.view(place.shape)
