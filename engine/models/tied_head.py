"""A checkpoint may hold a head of its own though ``config.json`` ties it to the embedding."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open

from rlserve.engine.models.base import ModelSpec
from rlserve.engine.models.parameters import EMBEDDING_NAME, HEAD_NAME
from rlserve.errors import ModelError


def check_tied_head(folder: Path, spec: ModelSpec) -> None:
    """Check that a tied head, if the folder's safetensors hold one, is the embedding. The weights are loaded without
    it, and transformers would compute with it.

    Raises:
        ModelError: it is another matrix.
    """
    files = {name: path for name in (HEAD_NAME, EMBEDDING_NAME) if (path := _file_of(folder, name)) is not None}
    if not spec.tied_embeddings or len(files) < 2:
        return
    head, embedding = (_read(path, name) for name, path in files.items())
    if head is not None and embedding is not None and not torch.equal(head, embedding):
        raise ModelError(
            f"{folder}: {HEAD_NAME} differs from {EMBEDDING_NAME}, but config.json ties the two: "
            "say tie_word_embeddings=false there"
        )


def _file_of(folder: Path, name: str) -> Path | None:
    """The shard that holds a tensor, or could; None where there is none."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.is_file():
        shard = json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).get(name)
        return folder / shard if shard is not None and (folder / shard).is_file() else None
    return single if single.is_file() else None


def _read(path: Path, name: str) -> torch.Tensor | None:
    with safe_open(path, framework="pt") as shard:
        return shard.get_tensor(name) if name in shard.keys() else None  # noqa: SIM118
