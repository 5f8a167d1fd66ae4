"""The safetensors shard or shards of a Hugging Face folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from rlserve.engine.models.safetensors_file import check_shard
from rlserve.errors import ModelError

if TYPE_CHECKING:
    import torch

_NOT_WEIGHTS = ".rotary_emb.inv_freq"
"""Older checkpoints hold the frequencies of rotary positions too, which follow from ``config.json``."""


class Checkpoint:
    """The weights in a folder, by name.

    Raises:
        ModelError: no safetensors, or shards that are not there or not wholly there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shards = _shards(folder)
        for path in self._shards:
            check_shard(path)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all weights; none of them is read."""
        found: dict[str, tuple[int, ...]] = {}
        for path in self._shards:
            with safe_open(path, framework="pt") as shard:
                found |= {name: tuple(shard.get_slice(name).get_shape()) for name in _names(shard)}
        return found

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """All weights, one after the other."""
        for path in self._shards:
            with safe_open(path, framework="pt") as shard:
                for name in _names(shard):
                    yield name, shard.get_tensor(name)

    def tensor(self, name: str) -> torch.Tensor:
        """One of them."""
        for path in self._shards:
            with safe_open(path, framework="pt") as shard:
                if name in shard.keys():  # noqa: SIM118
                    found: torch.Tensor = shard.get_tensor(name)
                    return found
        raise AssertionError(f"{self.folder} has no {name}")


def check_weights(folder: Path) -> None:
    """Make sure that all weights of a folder are there, from the headers of its shards alone.

    Raises:
        ModelError: as for :class:`Checkpoint`.
    """
    Checkpoint(folder)


def _names(shard: Any) -> list[str]:
    return [name for name in shard.keys() if not name.endswith(_NOT_WEIGHTS)]  # noqa: SIM118


def _shards(folder: Path) -> list[Path]:
    """Those that the index names, or the single file."""
    index_path = folder / "model.safetensors.index.json"
    if not index_path.is_file():
        single = folder / "model.safetensors"
        if not single.is_file():
            others = ", ".join(sorted(path.name for path in folder.glob("*.bin")))
            hint = f"; {others} must be converted to safetensors" if others else ""
            raise ModelError(f"{folder}: no weights, neither model.safetensors nor model.safetensors.index.json{hint}")
        return [single]
    try:
        weight_map = json.loads(index_path.read_text(encoding="utf-8")).get("weight_map", {})
    except (ValueError, AttributeError) as error:
        raise ModelError(f"{index_path}: not a JSON object: {error}") from error
    missing = sorted({name for name in weight_map.values() if not (folder / name).is_file()})
    if missing or not weight_map:
        raise ModelError(f"{index_path}: {'shards not there: ' + ', '.join(missing) if missing else 'no weight_map'}")
    return sorted({folder / shard for shard in weight_map.values()})
