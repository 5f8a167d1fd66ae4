"""Every version is the adapters of LoRA alone; the replica merges them into the model that training began with.

::

    model's folder   W, as it is there ──────────────────┐
    what travels     A [rank, in], B [out, rank] ────────┴─► W + scale · B A ──► in the engines' type

W is read anew for each version, so rounding errors do not add up: a merged model depends on its own version alone. It
is no second copy in memory either, but the file's own pages. An engine computes as fast as without adapters, and it
has one version of them at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from rlserve.engine.decoder.parameters import HEAD_NAME
from rlserve.engine.models.checkpoint import Checkpoint
from rlserve.engine.models.factory import read_model_spec
from rlserve.engine.weights.fingerprint import fingerprint
from rlserve.errors import WeightsRefusedError
from rlserve.trainers.backends.pytorch.adapters import NAME_PREFIX
from rlserve.weights.contents.base import Contents
from rlserve.weights.offer import FINGERPRINT_MASK

_FIRST, _SECOND = ".lora_A.weight", ".lora_B.weight"
"""After a layer's name in peft's files."""


class Adapters(Contents):
    """Adapters in float32, under the names of peft's files, of the model in a folder."""

    def __init__(self, folder: Path, *, scale: float, engine_dtype: torch.dtype) -> None:
        """Reads the whole folder once, for its fingerprint."""
        self.dtype = torch.float32
        self._checkpoint = Checkpoint(folder)
        self._leaves_out = {HEAD_NAME} if read_model_spec(folder).tied_embeddings else set()
        self._scale = scale
        self._engine_dtype = engine_dtype
        self.unsent_fingerprint = fingerprint(self._checkpoint.tensors())

    def whole(self, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        layers = {name.removesuffix(_FIRST).removesuffix(_SECOND) for name in tensors}
        pairs = {f"{layer.removeprefix(NAME_PREFIX)}.weight": _pair(layer, tensors) for layer in layers}
        found = {}
        for name, weight in self._checkpoint.tensors():
            if name in self._leaves_out:
                continue
            if name in pairs:
                weight = self._merged(name, weight, *pairs.pop(name))
            found[name] = weight.to(self._engine_dtype)
        if pairs:
            raise WeightsRefusedError(f"{self._checkpoint.folder} has no {min(pairs)}, for which an adapter arrived")
        return found

    def shift(self, tensors: Mapping[str, torch.Tensor], whole: Mapping[str, torch.Tensor]) -> int:
        published = fingerprint(tensors.items()) + self.unsent_fingerprint
        return published - fingerprint(whole.items()) & FINGERPRINT_MASK

    def num_engine_bytes(self, tensors: Mapping[str, torch.Tensor]) -> int:
        shapes = self._checkpoint.shapes()
        num_elements = sum(torch.Size(shape).numel() for name, shape in shapes.items() if name not in self._leaves_out)
        return num_elements * self._engine_dtype.itemsize

    def _merged(self, name: str, weight: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        if weight.shape != (len(second), first.shape[1]) or second.shape[1] != len(first):
            raise WeightsRefusedError(
                f"{name} has shape {list(weight.shape)}, and the adapter that arrived is {list(second.shape)} times "
                f"{list(first.shape)}"
            )
        return torch.addmm(weight.float(), second, first, alpha=self._scale)


def _pair(layer: str, tensors: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Both matrices of a layer's adapter, on the CPU."""
    lacking = [name for end in (_FIRST, _SECOND) if (name := f"{layer}{end}") not in tensors]
    if lacking:
        raise WeightsRefusedError(f"{lacking[0]} is missing among the adapters that arrived")
    first, second = tensors[f"{layer}{_FIRST}"], tensors[f"{layer}{_SECOND}"]
    return first.cpu(), second.cpu()
