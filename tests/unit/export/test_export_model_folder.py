"""A model folder: the same weights in the type that was asked for, as a whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from model_folders import write_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlserve.errors import UserError
from rlserve.export.model_folder import export_model


def test_as_it_is_and_in_another_type(tmp_path: Path) -> None:
    source = write_model(tmp_path / "m")
    before = AutoModelForCausalLM.from_pretrained(source).state_dict()
    for dtype, wanted in (("auto", torch.float32), ("bfloat16", torch.bfloat16)):
        exported = export_model(source, tmp_path / "out" / dtype, dtype=dtype, quantisation=None)
        model = AutoModelForCausalLM.from_pretrained(exported.folder)
        assert exported.num_parameters == sum(parameter.numel() for parameter in model.parameters())
        assert all(model.state_dict()[name].equal(weight.to(wanted)) for name, weight in before.items())
        assert {weight.dtype for weight in load_file(exported.folder / "model.safetensors").values()} == {wanted}
        assert [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")] == []


def test_what_is_there_is_not_touched(tmp_path: Path) -> None:
    source = write_model(tmp_path / "m")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").touch()
    for target in (tmp_path / "full", tmp_path / "full/mine"):
        with pytest.raises(UserError, match=f"{target} is there already: name a new folder"):
            export_model(source, target, dtype="auto", quantisation=None)
    (tmp_path / "empty").mkdir()
    assert export_model(source, tmp_path / "empty", dtype="auto", quantisation=None).size_bytes > 0


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_model(tmp_path / "m")

    def full(model: PreTrainedModel, folder: Path, **options: object) -> None:
        (folder / "config.json").write_text("{}")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    with pytest.raises(UserError, match=r"out cannot be written \(No space left on device\)"):
        export_model(source, tmp_path / "out", dtype="auto", quantisation=None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]
