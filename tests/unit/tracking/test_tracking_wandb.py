from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import wandb

import rlserve.tracking.wandb as sink_module
from rlserve.errors import UserError
from rlserve.tracking.config import TrackingConfig, WandbConfig
from rlserve.tracking.run_folder import RunFolder
from rlserve.tracking.tracker import create_tracker
from rlserve.tracking.wandb import choose_mode, has_key, open_wandb

CANARY_KEY = "c0ffee" * 6 + "beef"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "home"
    path.mkdir()
    return path


@pytest.mark.parametrize(
    ("mode", "environment", "expected"),
    [
        ("auto", {}, "offline"),
        ("auto", {"WANDB_API_KEY": CANARY_KEY}, "online"),
        ("auto", {"WANDB_API_KEY": CANARY_KEY, "WANDB_MODE": "offline"}, "offline"),
        ("auto", {"WANDB_MODE": "disabled"}, "disabled"),
        ("offline", {"WANDB_API_KEY": CANARY_KEY}, "offline"),
        ("online", {"WANDB_API_KEY": CANARY_KEY}, "online"),
        ("disabled", {}, "disabled"),
    ],
)
def test_mode(mode: str, environment: Mapping[str, str], expected: str, home: Path) -> None:
    config = WandbConfig(mode=mode)  # type: ignore[arg-type]
    assert choose_mode(config, {"HOME": str(home), **environment}) == expected


def test_online_without_a_key_is_refused_with_a_remedy(home: Path) -> None:
    with pytest.raises(UserError, match="wandb login"):
        choose_mode(WandbConfig(mode="online"), {"HOME": str(home)})


def test_key_from_netrc_counts_only_for_the_server_in_use(home: Path) -> None:
    environment = {"HOME": str(home)}
    (home / ".netrc").write_text(f"machine wandb.example.org login user password {CANARY_KEY}\n")
    assert not has_key(environment)
    assert has_key({**environment, "WANDB_BASE_URL": "https://wandb.example.org"})
    settings = home / ".config" / "wandb" / "settings"
    settings.parent.mkdir(parents=True)
    settings.write_text("[default]\nbase_url = https://wandb.example.org\n")
    assert has_key(environment)
    assert not has_key({**environment, "WANDB_BASE_URL": "https://api.wandb.ai"})


def test_a_broken_netrc_is_reported_and_holds_no_key(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    (home / ".netrc").write_text("machine\nnonsense here\n")
    assert not has_key({"HOME": str(home)})
    assert "no key taken from" in caplog.text


class FakeWandbSink:
    """Stands in for the real sink: refuses to go online."""

    opened: list[str]

    def __init__(self, config: WandbConfig, mode: str, folder: RunFolder, run_config: Mapping[str, object]) -> None:
        self.opened.append(mode)
        if mode == "online":
            raise wandb.errors.CommError("no route to host")


def test_a_server_out_of_reach_makes_the_run_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[str] = []
    FakeWandbSink.opened = calls
    monkeypatch.setattr(sink_module, "WandbSink", FakeWandbSink)
    monkeypatch.setattr(wandb, "teardown", lambda: calls.append("teardown"))
    open_wandb(WandbConfig(), "online", RunFolder.create(tmp_path, "run"), {})
    assert calls == ["online", "teardown", "offline"]
    assert "no route to host" in caplog.text


def files_with(folder: Path, text: str) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def test_offline_run_is_kept_in_the_run_folder_resumes_by_id_and_holds_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", CANARY_KEY)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    folder = RunFolder.create(tmp_path, "run")
    config = TrackingConfig(
        wandb=WandbConfig(mode="offline", project="some-project", tags=("tag-a",)), tensorboard=False
    )
    for resumed_step in (None, 2):
        tracker = create_tracker(config, folder, {"model": {"path": "model-of-the-config"}}, resumed_step)
        tracker.log(resumed_step or 1, {"critic/score/mean": 0.5})
        tracker.close(0)
    run_id = folder.wandb_run_id_file.read_text()
    run_folders = sorted(folder.path.glob("wandb/offline-run-*"))
    assert run_folders
    assert all(path.name.endswith(run_id) for path in run_folders)
    for text in ("model-of-the-config", "some-project", "tag-a", "critic/score/mean"):
        assert ".wandb" in [path.suffix for path in files_with(run_folders[0], text)], text
    command = folder.wandb_sync_command()
    assert command is not None
    assert str(run_folders[0]) in command
    assert files_with(folder.path, CANARY_KEY) == []
