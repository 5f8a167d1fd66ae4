"""What each rank writes of the policy: one file of a Hugging Face folder. Rank 0 also writes what is not weights.

::

    model-00001-of-00002.safetensors   rank 0's tensors
    model-00002-of-00002.safetensors   rank 1's
    model.safetensors.index.json       which tensor is in which file: it follows from what is dealt out to whom
    config.json, generation_config.json
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from rlserve.trainers.backends.pytorch.models import checkpoint_weights
from rlserve.trainers.backends.pytorch.state_copy import PolicyCopy
from rlserve.trainers.backends.spread.whole_tensors import SpreadTensor, deal_out

_SINGLE_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"


class PolicyFiles(PolicyCopy):
    """Of one of several ranks."""

    def __init__(
        self,
        policy: Any,
        weights: Mapping[str, Tensor],
        *,
        tensors: Sequence[SpreadTensor],
        rank: int,
        num_ranks: int,
    ) -> None:
        """``weights`` are this rank's, by their names in the policy, in host memory, where nobody changes them; nothing
        else of ``policy`` is kept that has any size. ``tensors`` are the whole policy's."""
        self._config = copy.deepcopy(policy.config)
        self._config.architectures = [type(policy).__name__]
        self._config.dtype = "float32"
        self._generation_config = copy.deepcopy(policy.generation_config)
        self._weights = weights
        self._tensors = tensors
        self._rank, self._num_ranks = rank, num_ranks

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        contents = {
            # safetensors refuses tensors that share one storage, as the experts of a layer do
            name: tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
            for name, tensor in checkpoint_weights(self._weights).items()
        }
        save_file(contents, folder / policy_file_name(self._rank, self._num_ranks), metadata={"format": "pt"})
        if self._rank == 0:
            self._config.save_pretrained(folder)
            self._generation_config.save_pretrained(folder)
            index = policy_index(self._tensors, self._num_ranks)
            (folder / _INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            (folder / _SINGLE_FILE).unlink(missing_ok=True)  # transformers would read this one, if it was there before


def policy_file_name(rank: int, num_ranks: int) -> str:
    """Of a rank's file."""
    return f"model-{rank + 1:05d}-of-{num_ranks:05d}.safetensors"


def policy_index(tensors: Sequence[SpreadTensor], num_ranks: int) -> dict[str, Any]:
    """The index of a policy of these tensors: pure."""
    weight_map: dict[str, str] = {}
    for rank, of_rank in enumerate(deal_out(tensors, num_ranks)):
        empty = {tensor.name: torch.empty(tensor.shape, device="meta") for tensor in of_rank}
        weight_map |= dict.fromkeys(checkpoint_weights(empty), policy_file_name(rank, num_ranks))
    num_elements = sum(tensor.elements.num_elements for tensor in tensors)
    return {"metadata": {"total_size": num_elements * torch.float32.itemsize}, "weight_map": weight_map}
