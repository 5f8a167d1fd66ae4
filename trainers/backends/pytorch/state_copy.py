"""What one rank writes of a checkpoint, copied to host memory at a step boundary and written while training goes on.

Each rank has its shard of parameters and moments, rank 0 also the whole policy, counters and the index::

    rank 0   ───copy───┬── step ── step ──     all ranks copy between the same two steps, and none waits for another
                       └── write ──┤
    rank 1   ───copy───┬── step ── step ──
                       └── write ────┤

Tensors by shape: E elements of a shard.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from rlserve.trainers.backends.base import POLICY
from rlserve.trainers.backends.config import LoraConfig
from rlserve.trainers.backends.pytorch.adapters import add_adapters, merged_weights, save_adapters
from rlserve.trainers.backends.pytorch.optimizer import joined
from rlserve.trainers.backends.pytorch.parameters import FlatParameters
from rlserve.trainers.backends.pytorch.scorer import load_scorer
from rlserve.trainers.backends.pytorch.state import MOMENTS, TrainingState
from rlserve.trainers.backends.pytorch.state_files import Part, file_name, parts_of_rank_0, write_index
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


class MergedScorerCopy(PolicyCopy):
    """A model that scores and is trained with LoRA: whole, with its adapters merged, as every reward model is."""

    def __init__(self, weights: Mapping[str, Tensor], config: LoraConfig, model_path: str) -> None:
        """``weights`` are adapters and head."""
        self._weights = weights
        self._config = config
        self._model_path = model_path

    def write(self, folder: Path) -> None:
        scorer = load_scorer(self._model_path, load_weights=True, seed=0)  # its head is among the weights
        add_adapters(scorer, self._config, seed=0)
        ModelCopy(scorer, merged_weights(scorer, self._weights)).write(folder)


class ModelCopy(PolicyCopy):
    """The whole model."""

    def __init__(self, policy: Any, weights: Mapping[str, Tensor]) -> None:
        """``weights`` go by their names in the policy; nothing else of ``policy`` is kept that has any size."""
        self._class = type(policy)
        self._config = policy.config
        self._generation_config = policy.generation_config if policy.can_generate() else None
        self._weights = weights

    def write(self, folder: Path) -> None:
        with torch.device("meta"):
            skeleton = self._class(copy.deepcopy(self._config))  # a model may write into its own
        if self._generation_config is not None:
            skeleton.generation_config = copy.deepcopy(self._generation_config)
        skeleton.save_pretrained(folder, state_dict=_apart(self._weights))


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Where parameters stand in a vector, and which part of it each rank writes."""

    parameters: tuple[tuple[str, Interval], ...]
    """By name."""
    shards: tuple[Interval, ...]
    """By rank."""

    @classmethod
    def of(cls, flat: FlatParameters, holdings: Holdings, num_ranks: int) -> _Layout:
        parameters = (
            (f"{module}.{name}", place.elements)
            for module in flat.segments
            for name, place in flat.named_places(module)
        )
        return cls(parameters=tuple(parameters), shards=tuple(map(holdings.shard, range(num_ranks))))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Held:
    """What one rank has of a vector."""

    prefix: str
    """Of the parameters' names."""
    layout: _Layout
    shard_E: Tensor
    """Its elements."""

    def tensors(self, rank: int) -> dict[str, Tensor]:
        """What it has of each parameter, as views; each [elements]."""
        first = self.layout.shards[rank].first
        return {name: self.shard_E[common.first - first : common.end - first] for name, _, common in self._cut_by(rank)}

    def note_parts(self, parts: dict[str, list[Part]]) -> None:
        """Which elements of each parameter each rank writes: the same on all ranks."""
        num_ranks = len(self.layout.shards)
        for rank in range(num_ranks):
            for name, first, common in self._cut_by(rank):
                elements = Interval(common.first - first, common.end - first)
                parts.setdefault(name, []).append(Part(file=file_name(rank, num_ranks), elements=elements))

    def _cut_by(self, rank: int) -> Iterator[tuple[str, int, Interval]]:
        """Of each parameter of which a rank has elements: its name, where it begins, and what they are."""
        for name, elements in self.layout.parameters:
            common = intersection(elements, self.layout.shards[rank])
            if common.num_elements:
                yield f"{self.prefix}{name}", elements.first, common


class ShardCopy(StateCopy):
    """Of one rank of a group; see ``StateCopy``. Training waits while it is made: all but the copies of vectors is left
    to ``write``."""

    def __init__(
        self, state: TrainingState, group: Group, copy_policy: Callable[[Mapping[str, Tensor]], PolicyCopy]
    ) -> None:
        """``copy_policy`` makes the policy's copy of its parameters in host memory."""
        self._rank, self._num_ranks = group.rank, group.num_ranks
        self._declared = state.saved_tensors()
        self._policy: PolicyCopy | None = None
        flat, layout = state.flat, _Layout.of(state.flat, state.holdings, group.num_ranks)
        shard = layout.shards[group.rank]
        if group.rank == 0:
            parameters, first = _on_host(flat.vector), 0
            weights = {name: place.view(parameters) for name, place in flat.named_places(POLICY)}
            self._policy = copy_policy(weights)
        else:
            parameters, first = _on_host(flat.vector[shard.elements]), shard.first
        self._held = [_Held(prefix="", layout=layout, shard_E=parameters[shard.first - first : shard.end - first])]
        for prefix, moment in MOMENTS.items():
            held = _on_host(joined(state.optimizer.moments, shard, moment))
            self._held.append(_Held(prefix=prefix, layout=layout, shard_E=held))
        if state.flat_reference is not None:
            vector = state.flat_reference.vector
            even = Holdings(num_elements=vector.numel(), num_holders=group.num_ranks)
            layout = _Layout.of(state.flat_reference, even, group.num_ranks)
            held = _on_host(vector[layout.shards[group.rank].elements])
            self._held.append(_Held(prefix="", layout=layout, shard_E=held))
        self._progress = state.progress.saved().tensors()

    def write(self, folder: Path, *, policy_folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor for held in self._held for name, tensor in held.tensors(self._rank).items()}
        if self._rank == 0:
            tensors |= self._progress
        save_file(tensors, folder / file_name(self._rank, self._num_ranks))
        if self._policy is not None:
            parts = parts_of_rank_0(self._progress, self._num_ranks)
            for held in self._held:
                held.note_parts(parts)
            write_index(folder, self._declared, parts)
            self._policy.write(policy_folder)


def _apart(views: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies, because safetensors refuses tensors that share one storage, as views of one vector do."""
    return {name: view.clone() for name, view in views.items()}


def _on_host(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)
