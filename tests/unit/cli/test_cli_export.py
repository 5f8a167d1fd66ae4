"""``rlserve export``: from a run's checkpoint to a folder, and what is refused."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from model_folders import write_adapters, write_model
from small_runs import finished_run
from transformers import AutoModelForCausalLM

from rlserve.cli import main
from rlserve.cli.checkpoints import find_checkpoint, whole_model
from rlserve.controller.checkpoint import save_checkpoint
from rlserve.export import hub
from rlserve.tracking.run_folder import RunFolder


@pytest.fixture
def run(place: Path) -> RunFolder:
    """A run with two checkpoints of small models."""
    folder = finished_run(place / "runs", "r1")
    folder.config_file.write_text("name: r1\n")

    async def write(temporary: Path) -> None:
        write_model(temporary / "policy")

    for step in (2, 3):
        asyncio.run(save_checkpoint(folder.checkpoints, step, write, {}, keep=2))
    return folder


def test_the_newest_checkpoint_is_written(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "r1", "--to", "m", "--dtype", "bfloat16", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["checkpoint"] == str(run.checkpoints / "step_000003/policy")
    assert found["folder"] == str(Path.cwd() / "m")
    assert found["address"] is None
    assert AutoModelForCausalLM.from_pretrained("m").num_parameters() == found["num_parameters"]
    assert found["size_bytes"] == Path("m/model.safetensors").stat().st_size


def test_it_is_pushed_where_that_is_asked_for(
    run: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed = []

    def push(folder: Path, repository: str, *, private: bool, message: str) -> str:
        pushed.append((folder.name, repository, private, message))
        return f"https://hub/{repository}"

    monkeypatch.setattr(hub, "push_folder", push)
    assert main(["export", str(run.checkpoints / "step_000002"), "--to", "m", "--push", "me/m", "--private"]) == 0
    assert pushed == [("m", "me/m", True, "r1-step_000002")]
    assert "pushed to https://hub/me/m" in capsys.readouterr().out


def test_adapters_are_merged(run: RunFolder, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_adapters(run.checkpoints / "step_000004/policy", base=write_model(place / "base"))
    (run.checkpoints / "step_000004/manifest.json").write_text("{}")
    assert main(["export", "r1", "--to", "m", "--dtype", "float32"]) == 0
    before, after = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in ("base", "m"))
    changed = {name for name, weight in before.items() if not weight.equal(after[name])}
    assert changed == {name for name in before if name.endswith("_proj.weight")}


def test_merged_adapters_are_removed_once_they_have_been_used(place: Path) -> None:
    for folder, is_merged in ((write_model(place / "m"), False), (write_adapters(place / "a", place / "m"), True)):
        with whole_model(find_checkpoint(str(folder), "runs")) as model_path:
            assert (model_path != folder) is is_merged
            assert AutoModelForCausalLM.from_pretrained(model_path).num_parameters() > 0
        assert model_path.exists() is not is_merged


def test_adapters_whose_model_is_gone_are_named(
    run: RunFolder, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_adapters(place / "adapters", base=write_model(place / "base"))
    (place / "base").rename(place / "elsewhere")
    assert main(["export", "adapters", "--to", "m"]) == 2
    assert f"adapters holds adapters of '{place}/base', which cannot be loaded" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_refused(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    weights = run.checkpoints / "step_000003/policy/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    assert main(["export", "r1", "--to", "m"]) == 2
    assert "step_000003 is damaged" in capsys.readouterr().err
    assert not Path("m").exists()


def test_private_means_nothing_without_a_repository(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "r1", "--to", "m", "--private"]) == 2
    assert "name it by --push OWNER/NAME" in capsys.readouterr().err
