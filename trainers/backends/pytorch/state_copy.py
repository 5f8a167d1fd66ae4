"""What one rank writes of a checkpoint, copied to host memory at a step boundary and written while training goes on.

Each rank has its shard of parameters and moments, rank 0 also the whole policy, counters and the index::

    rank 0   ───copy───┬── step ── step ──     all ranks copy between the same two steps, and none waits for another
                       └── write ──┤
    rank 1   ───copy───┬── step ── step ──
                       └── write ────┤
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from rlserve.trainers.backends.base import POLICY
from rlserve.trainers.backends.config import LoraConfig
from rlserve.trainers.backends.pytorch.adapters import save_adapters
from rlserve.trainers.backends.pytorch.optimizer import joined
from rlserve.trainers.backends.pytorch.parameters import FlatParameters, Place
from rlserve.trainers.backends.pytorch.state import COUNTERS, MOMENTS, TrainingState
from rlserve.trainers.backends.pytorch.state_files import Part, file_name, write_index
from rlserve.trainers.base import StateCopy
from rlserve.trainers.elastic.base import Group
from rlserve.trainers.elastic.holdings import Holdings
from rlserve.trainers.elastic.intervals import Interval, intersection


class PolicyCopy(ABC):
    """The policy's weights in host memory, and what else its folder holds."""

    @abstractmethod
    def write(self, folder: Path) -> None:
        """As a Hugging Face folder, or one of peft."""


class AdaptersCopy(PolicyCopy):
    """With LoRA, the adapters."""

    def __init__(self, weights: Mapping[str, Tensor], config: LoraConfig, model_path: str) -> None:
        self._weights = weights
        self._config = config
        self._model_path = model_path

    def write(self, folder: Path) -> None:
        save_adapters(folder, self._weights, self._config, self._model_path)


class ModelCopy(PolicyCopy):
    """The whole model."""

    def __init__(self, policy: Any, weights: Mapping[str, Tensor]) -> None:
        """``weights`` go by their names in the policy; nothing else of ``policy`` is kept that has any size."""
        self._class = type(policy)
        self._config = copy.deepcopy(policy.config)
        self._generation_config = copy.deepcopy(policy.generation_config)
        self._weights = weights

    def write(self, folder: Path) -> None:
        with torch.device("meta"):
            skeleton = self._class(self._config)
        skeleton.generation_config = self._generation_config
        skeleton.save_pretrained(folder, state_dict=_apart(self._weights))


class ShardCopy(StateCopy):
    """Of one rank of a group; see ``StateCopy``."""

    def __init__(
        self, state: TrainingState, group: Group, copy_policy: Callable[[Mapping[str, Tensor]], PolicyCopy]
    ) -> None:
        """``copy_policy`` makes the policy's copy of its parameters in host memory."""
        self._rank, self._num_ranks = group.rank, group.num_ranks
        self._declared = state.saved_tensors()
        self._parts = _all_parts(state, group.num_ranks)
        self._policy: PolicyCopy | None = None
        flat, shard = state.flat, state.holdings.shard(group.rank)
        if group.rank == 0:
            parameters, first = _on_host(flat.vector), 0
            weights = {name: place.view(parameters) for name, place in flat.named_places(POLICY)}
            self._policy = copy_policy(weights)
        else:
            parameters, first = _on_host(flat.vector[shard.elements]), shard.first
        self._tensors = _cut(flat, "", parameters[shard.first - first : shard.end - first], shard)
        for prefix, moment in MOMENTS.items():
            held = _on_host(joined(state.optimizer.moments, shard, moment))
            self._tensors |= _cut(flat, prefix, held, shard)
        if state.flat_reference is not None:
            reference, its_shard = state.flat_reference, _even_shard(state.flat_reference, group.rank, group.num_ranks)
            held = _on_host(reference.vector[its_shard.elements])
            self._tensors |= _cut(reference, "", held, its_shard)
        if group.rank == 0:
            self._tensors[COUNTERS] = torch.tensor([state.progress.num_steps, state.optimizer.num_updates])

    def write(self, folder: Path, *, policy_folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self._tensors, folder / file_name(self._rank, self._num_ranks))
        if self._policy is not None:
            write_index(folder, self._declared, self._parts)
            self._policy.write(policy_folder)


def _all_parts(state: TrainingState, num_ranks: int) -> dict[str, list[Part]]:
    """Which elements of each saved tensor each rank writes: the same on all ranks."""
    parts: dict[str, list[Part]] = {COUNTERS: [Part(file=file_name(0, num_ranks), elements=Interval(0, 2))]}
    for rank in range(num_ranks):
        shard, file = state.holdings.shard(rank), file_name(rank, num_ranks)
        for prefix in ("", *MOMENTS):
            _note_parts(parts, state.flat, prefix, shard, file)
        if state.flat_reference is not None:
            reference = state.flat_reference
            _note_parts(parts, reference, "", _even_shard(reference, rank, num_ranks), file)
    return parts


def _note_parts(parts: dict[str, list[Part]], flat: FlatParameters, prefix: str, shard: Interval, file: str) -> None:
    for name, place in _named_places(flat, prefix):
        common = intersection(place.elements, shard)
        if common.num_elements:
            first = place.elements.first
            part = Part(file=file, elements=Interval(common.first - first, common.end - first))
            parts.setdefault(name, []).append(part)


def _cut(flat: FlatParameters, prefix: str, held: Tensor, shard: Interval) -> dict[str, Tensor]:
    """What of each parameter lies in a shard, as views of the shard's elements ``held``; each [elements]."""
    found = {}
    for name, place in _named_places(flat, prefix):
        common = intersection(place.elements, shard)
        if common.num_elements:
            found[name] = held[common.first - shard.first : common.end - shard.first]
    return found


def _named_places(flat: FlatParameters, prefix: str) -> list[tuple[str, Place]]:
    return [
        (f"{prefix}{module}.{name}", place) for module in flat.segments for name, place in flat.named_places(module)
    ]


def _even_shard(flat: FlatParameters, rank: int, num_ranks: int) -> Interval:
    return Holdings(num_elements=flat.vector.numel(), num_holders=num_ranks).shard(rank)


def _apart(views: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies, because safetensors refuses tensors that share one storage, as views of one vector do."""
    return {name: view.clone() for name, view in views.items()}


def _on_host(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)
