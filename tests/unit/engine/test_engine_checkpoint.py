"""Broken model folders are found by their shards' headers, and named with the remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rlserve.engine.models.checkpoint import Checkpoint, check_weights
from rlserve.errors import ModelError

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards and their index."""
    for number in (1, 2):
        save_file({f"layer.{number}": torch.ones(3, number)}, tmp_path / f"model-{number}.safetensors")
    weight_map = {f"layer.{number}": f"model-{number}.safetensors" for number in (1, 2)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return tmp_path


def refused(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        check_weights(folder)
    return str(caught.value)


def test_a_whole_folder_is_taken(folder: Path) -> None:
    assert Checkpoint(folder).shapes() == {"layer.1": (3, 1), "layer.2": (3, 2)}


def test_a_single_file_is_taken(tmp_path: Path) -> None:
    save_file({"layer": torch.ones(3)}, tmp_path / "model.safetensors")
    assert Checkpoint(tmp_path).shapes() == {"layer": (3,)}


def test_a_git_lfs_pointer_says_what_to_do(folder: Path) -> None:
    (folder / "model-2.safetensors").write_text(POINTER)
    assert refused(folder) == (
        f"{folder}/model-2.safetensors is a Git LFS pointer, not the weights: run git lfs pull in {folder}"
    )


@pytest.mark.parametrize("change", [-100, -1, 1])
def test_a_shard_of_another_length_is_named_with_the_length_it_must_have(folder: Path, change: int) -> None:
    shard = folder / "model-2.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:change] if change < 0 else whole + b"x")
    assert f"{shard} " in refused(folder)
    if change != -100:  # which ends within the header
        assert f"{len(whole) + change:,} bytes, must be {len(whole):,}; fetch it again" in refused(folder)


@pytest.mark.parametrize("content", [b"", b"abc", b"<html>not found</html>", (8).to_bytes(8, "little") + b"nonsense"])
def test_what_is_no_safetensors_file_is_said_so(folder: Path, content: bytes) -> None:
    (folder / "model-1.safetensors").write_bytes(content)
    assert f"{folder}/model-1.safetensors is no safetensors file" in refused(folder)


def test_a_shard_that_is_not_there_is_named(folder: Path) -> None:
    (folder / "model-1.safetensors").unlink()
    assert refused(folder).endswith("shards not there: model-1.safetensors")


@pytest.mark.parametrize("index", ["{", "[]", POINTER])
def test_a_broken_index_is_named(folder: Path, index: str) -> None:
    (folder / "model.safetensors.index.json").write_text(index)
    assert "model.safetensors.index.json: not a JSON object" in refused(folder)


def test_no_weights_at_all(tmp_path: Path) -> None:
    assert refused(tmp_path).startswith(f"{tmp_path}: no weights, neither model.safetensors nor")
    (tmp_path / "pytorch_model.bin").touch()
    assert refused(tmp_path).endswith("; pytorch_model.bin must be converted to safetensors")
