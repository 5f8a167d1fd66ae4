from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlserve.tracking.config import TrackingConfig, WandbConfig
from rlserve.tracking.run_folder import RunFolder
from rlserve.tracking.tensorboard import TensorBoardSink
from rlserve.tracking.tracker import create_tracker


def read_back(folder: Path, tag: str) -> list[tuple[int, float]]:
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return [(point.step, point.value) for point in accumulator.Scalars(tag)]


def test_scalars_read_back_as_tensorboard_reads_them(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "run")
    tracker = create_tracker(TrackingConfig(wandb=WandbConfig(enabled=False)), folder, {})
    for step in (1, 2):
        tracker.log(step, {"critic/score/mean": step / 4, "actor/pg_loss": -1.0})
    tracker.close(0)
    assert read_back(folder.tensorboard, "critic/score/mean") == [(1, 0.25), (2, 0.5)]
    assert read_back(folder.tensorboard, "actor/pg_loss") == [(1, -1.0), (2, -1.0)]


def test_a_resumed_run_takes_back_the_steps_that_it_does_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock_s = iter(range(1_000_000, 1_001_000))  # event files are ordered by the second that they were made in
    monkeypatch.setattr("time.time", lambda: float(next(clock_s)))
    first = TensorBoardSink(tmp_path)
    for step in range(1, 6):
        first.log(step, {"x": 1.0})
    first.close(1)
    second = TensorBoardSink(tmp_path, resumed_step=4)
    for step in range(4, 7):
        second.log(step, {"x": 2.0})
    second.close(0)
    assert read_back(tmp_path, "x") == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0), (6, 2.0)]
