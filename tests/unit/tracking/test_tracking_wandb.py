from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import wandb

import rlserve.tracking.wandb as sink_module
from rlserve.tracking.answers import Answer
from rlserve.tracking.config import TrackingConfig, WandbConfig
from rlserve.tracking.run_folder import RunFolder
from rlserve.tracking.tracker import create_tracker
from rlserve.tracking.wandb import open_wandb

ANSWER = Answer(
    step=1,
    kind="training",
    group_id="0:3",
    index=0,
    prompt="1+1=",
    reference={"value": 2},
    response="response-in-a-table",
    reward=None,
    finish_reason="stop",
    num_prompt_tokens=4,
    num_response_tokens=1,
    weight_spans=((0, 0, 1),),
    staleness=0,
)
CANARY_KEY = "c0ffee" * 6 + "beef"


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
    monkeypatch.setenv("WANDB_MODE", "DryRun")  # a spelling that wandb itself refuses
    monkeypatch.setenv("WANDB_NAME", "name-of-the-environment")
    folder = RunFolder.create(tmp_path, "run")
    config = TrackingConfig(wandb=WandbConfig(project="some-project", tags=("tag-a",)), tensorboard=False)
    for resumed_step in (None, 2):
        tracker = create_tracker(config, folder, {"model": {"path": "model-of-the-config"}}, resumed_step)
        tracker.log(resumed_step or 1, {"critic/score/mean": 0.5})
        tracker.log_answers(resumed_step or 1, "training", lambda: [ANSWER])
        tracker.close(0)
    run_id = folder.wandb_run_id_file.read_text()
    run_folders = sorted(folder.path.glob("wandb/offline-run-*"))
    assert run_folders
    assert all(path.name.endswith(run_id) for path in run_folders)
    for text in ("model-of-the-config", "some-project", "tag-a", "critic/score/mean", "name-of-the-environment"):
        assert ".wandb" in [path.suffix for path in files_with(run_folders[0], text)], text
    assert [path.suffixes for path in files_with(run_folders[0], "response-in-a-table")] == [[".table", ".json"]]
    command = folder.wandb_sync_command()
    assert command is not None
    assert str(run_folders[0]) in command
    assert files_with(folder.path, CANARY_KEY) == []


@pytest.mark.parametrize("alerts", [True, False])
def test_an_alert_is_sent_unless_it_is_turned_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alerts: bool
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    sent: list[tuple[str, str, str]] = []
    monkeypatch.setattr(wandb.Run, "alert", lambda _, title, text, level: sent.append((title, text, level)))
    sink = open_wandb(WandbConfig(alerts=alerts), "offline", RunFolder.create(tmp_path, "run"), {})
    sink.alert("budget passed", "2 of 1")
    sink.close(1)
    assert sent == ([("budget passed", "2 of 1", "ERROR")] if alerts else [])
