"""The weights of one model: fused for speed inside, Hugging Face names outside.

Queries, keys and values share one matrix, so do gate and up. Each Hugging Face name is a view into the fused
tensor, so an update is one copy into place and needs no second set of weights.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from rlserve.engine.models.base import ModelSpec
from rlserve.engine.models.layer_parameters import expert_stacks, new_layer
from rlserve.errors import ModelError, WeightsRefusedError

HEAD_NAME = "lm_head.weight"
EMBEDDING_NAME = "model.embed_tokens.weight"


class Parameters:
    """Owner of all weight tensors. Empty (uninitialised) until loaded."""

    def __init__(self, spec: ModelSpec, dtype: torch.dtype, device: torch.device) -> None:
        self._spec = spec
        self._dtype = dtype
        self._device = device
        self._fused: list[torch.Tensor] = []
        self._views: dict[str, torch.Tensor] = {}
        self._stacks = expert_stacks(spec)
        self.embedding = self._new([EMBEDDING_NAME], [spec.vocab_size], spec.hidden_size)
        self.layers = [new_layer(spec, index, self._new) for index in range(spec.num_layers)]
        self.final_norm = self._new(["model.norm.weight"], [spec.hidden_size])
        self.head = (
            self.embedding if spec.tied_embeddings else self._new([HEAD_NAME], [spec.vocab_size], spec.hidden_size)
        )

    def named(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every weight under its Hugging Face name, as a view of what is really computed with. A tied head is
        not listed: it is the embedding."""
        yield from self._views.items()

    def update(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy a whole new set of weights into place; all is checked before anything changes.

        Raises:
            WeightsRefusedError: names missing or unknown, or shapes that do not fit.
        """
        tensors = self._by_part(tensors)
        problems = self._problems({name: tuple(tensor.shape) for name, tensor in tensors.items()})
        brings_tied_head = HEAD_NAME in tensors and self._spec.tied_embeddings and not problems
        if brings_tied_head and not torch.equal(tensors[HEAD_NAME], tensors[EMBEDDING_NAME]):
            problems.append(f"{HEAD_NAME} differs from {EMBEDDING_NAME}, but the model ties the two")
        if problems:
            raise WeightsRefusedError(_summary("weights refused", problems))
        for name, view in self._views.items():
            view.copy_(tensors[name])

    def copies(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Copies of some of the weights, in the engine's type and on its device, for a later :meth:`update`.

        Raises:
            WeightsRefusedError: unknown names, or shapes that do not fit.
        """
        tensors = self._by_part(tensors)
        problems = self._misfits({name: tuple(tensor.shape) for name, tensor in tensors.items()})
        if problems:
            raise WeightsRefusedError(_summary("weights refused", problems))
        return {
            name: tensor.detach().to(device=self._device, dtype=self._dtype, copy=True)
            for name, tensor in tensors.items()
        }

    def load_folder(self, folder: Path) -> None:
        """Read the safetensors shard or shards of a Hugging Face folder.

        Raises:
            ModelError: no safetensors, or tensors that do not fit the configuration.
        """
        shard_of = _tensor_files(folder)
        shapes: dict[str, tuple[int, ...]] = {}
        for path in sorted(set(shard_of.values())):
            with safe_open(path, framework="pt") as shard:
                found = {name: tuple(shard.get_slice(name).get_shape()) for name in shard.keys()}  # noqa: SIM118
                shapes |= {name: tuple(part.shape) for name, part in self._by_part(_without_data(found)).items()}
        problems = self._problems(shapes)
        if problems:
            raise ModelError(_summary(f"{folder}: weights do not fit config.json", problems))
        for path in sorted(set(shard_of.values())):
            with safe_open(path, framework="pt") as shard:
                for name in shard.keys():  # noqa: SIM118
                    for part, tensor in self._by_part({name: shard.get_tensor(name)}).items():
                        if part in self._views:
                            self._views[part].copy_(tensor)

    def release(self) -> None:
        """Free the memory; the tensors stay as empty shells that :meth:`restore` gives memory again."""
        for tensor in self._fused:
            tensor.untyped_storage().resize_(0)

    def restore(self) -> None:
        """Take the memory again, if it was released. Its content is undefined until the next update."""
        for tensor in self._fused:
            tensor.untyped_storage().resize_(tensor.numel() * tensor.element_size())

    def _by_part(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """The tensors under the names of a checkpoint: those that stack all experts are taken apart."""
        if self._stacks.keys().isdisjoint(tensors):
            return tensors
        parts: dict[str, torch.Tensor] = {}
        for name, tensor in tensors.items():
            stack = self._stacks.get(name)
            fits = stack is not None and tuple(tensor.shape) == stack.shape
            parts |= stack.parts(tensor) if stack is not None and fits else {name: tensor}
        return parts

    def _problems(self, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        return [f"{name} is missing" for name in self._views if name not in shapes] + self._misfits(shapes)

    def _misfits(self, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        ignored = {HEAD_NAME} if self._spec.tied_embeddings else set()
        problems = [f"{name} is unknown" for name in shapes if name not in self._views and name not in ignored]
        problems += [
            f"{name} has shape {list(shapes[name])}, must be {list(view.shape)}"
            for name, view in self._views.items()
            if name in shapes and shapes[name] != tuple(view.shape)
        ]
        return problems

    def _new(self, names: list[str], rows: list[int], *columns: int) -> torch.Tensor:
        """A tensor whose rows are the named parts, one below the other."""
        fused = torch.empty((sum(rows), *columns), dtype=self._dtype, device=self._device)
        self._fused.append(fused)
        self._views |= dict(zip(names, torch.split(fused, rows), strict=True))
        return fused


def _tensor_files(folder: Path) -> dict[str, Path]:
    """Which file holds which tensor: the index if there is one, else the single file (under the name "*")."""
    index_path = folder / "model.safetensors.index.json"
    if not index_path.is_file():
        single = folder / "model.safetensors"
        if not single.is_file():
            raise ModelError(f"{folder}: no model.safetensors and no model.safetensors.index.json")
        return {"*": single}
    weight_map = json.loads(index_path.read_text(encoding="utf-8")).get("weight_map", {})
    missing = sorted({name for name in weight_map.values() if not (folder / name).is_file()})
    if missing or not weight_map:
        raise ModelError(f"{index_path}: {'shards not there: ' + ', '.join(missing) if missing else 'no weight_map'}")
    return {name: folder / shard for name, shard in weight_map.items()}


def _without_data(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def _summary(title: str, problems: list[str]) -> str:
    shown = "; ".join(problems[:5])
    return f"{title}: {shown}" + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
